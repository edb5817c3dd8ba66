// Par04's exact call from C++, with the shared library of the wheel and no headers: ONNX Runtime's C API is a table of
// function pointers to which later versions only append. LIBRARY MODEL INPUTS OUTPUTS SIZE VOXELS COUNT
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <vector>

struct Base {
  const void* const* (*api)(std::uint32_t);
  const char* (*version)();
};
using P = void*;
template <class F> F slot(const void* const* api, int number) {
  F found;
  std::memcpy(&found, &api[number], sizeof found);
  return found;
}

int main(int, char** words) {
  void* library = dlopen(words[1], RTLD_NOW);
  if (!library) return std::puts(dlerror()), 1;
  const Base* (*base)();
  void* symbol = dlsym(library, "OrtGetApiBase");
  std::memcpy(&base, &symbol, sizeof base);
  const void* const* api = base()->api(11);
  const auto check = [&](P status) {
    if (status) std::puts(slot<const char* (*)(P)>(api, 2)(status)), std::exit(1);
  };
  P env, options, session, memory;
  check(slot<P (*)(int, const char*, P*)>(api, 3)(2, "calogen", &env));                 // CreateEnv
  check(slot<P (*)(P*)>(api, 10)(&options));                                           // CreateSessionOptions
  check(slot<P (*)(P, int)>(api, 23)(options, 0));                                     // ORT_DISABLE_ALL
  check(slot<P (*)(P, int)>(api, 24)(options, 1));                                     // one thread
  check(slot<P (*)(P, const char*, P, P*)>(api, 7)(env, words[2], options, &session)); // CreateSession
  check(slot<P (*)(int, int, P*)>(api, 69)(1, 0, &memory));                            // CreateCpuMemoryInfo
  const std::int64_t size = std::atoi(words[5]), voxels = std::atoi(words[6]), count = std::atoi(words[7]);
  std::ifstream in(words[3], std::ios::binary);
  std::ofstream out(words[4], std::ios::binary);
  std::vector<float> vector(size);
  const std::int64_t shape[] = {1, size};
  const char *inputs[] = {"vector"}, *outputs[] = {"fractions"};
  for (std::int64_t i = 0; i < count; ++i) {
    in.read(reinterpret_cast<char*>(vector.data()), 4 * size);
    P given, made = nullptr, numbers;
    check(slot<P (*)(P, void*, size_t, const std::int64_t*, size_t, int, P*)>(api, 49)(memory, vector.data(), 4 * size,
                                                                                      shape, 2, 1, &given));
    check(slot<P (*)(P, P, const char* const*, const P*, size_t, const char* const*, size_t, P*)>(api, 9)(
        session, nullptr, inputs, &given, 1, outputs, 1, &made));
    check(slot<P (*)(P, void**)>(api, 51)(made, &numbers));
    out.write(static_cast<const char*>(numbers), 4 * voxels);
    slot<void (*)(P)>(api, 96)(made);
    slot<void (*)(P)>(api, 96)(given);
  }
}
