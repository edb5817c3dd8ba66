// What the tests ask of the header: programs that read a table of requests and write what comes out.
//
//     check noise WEIGHTS SEED INDEX N OUT              latents (n, Z)
//     check decode WEIGHTS LATENTS CONDITIONS N OUT     showers (n, V) of given latents, in batches of several sizes
//     check sample WEIGHTS SEED CONDITIONS N OUT        showers (n, V), by several threads
//     check time WEIGHTS CONDITIONS N                   nanoseconds of decode and of sample, one at a time and in bulk
#include <cstdlib>
#include <ctime>
#include <iostream>
#include <thread>

#include "calogen_shower.hpp"

namespace {

std::vector<float> read(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  std::vector<float> found(bytes.size() / sizeof(float));
  if (!found.empty()) std::memcpy(found.data(), bytes.data(), found.size() * sizeof(float));
  return found;
}

void write(const std::string& path, const std::vector<float>& values) {
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(float)));
}

// CPU time of the fastest of several rounds.
template <class Work>
double nanoseconds(int repeats, Work work) {
  double best = 1e30;
  for (int round = 0; round < 9; ++round) {
    const std::clock_t begun = std::clock();
    for (int i = 0; i < repeats; ++i) work(i);
    best = std::min(best, 1e9 * static_cast<double>(std::clock() - begun) / CLOCKS_PER_SEC / repeats);
  }
  return best;
}

}  // namespace

int main(int count, char** words) try {
  const std::vector<std::string> word(words, words + count);
  const std::string& what = word.at(1);
  const calogen::Surrogate surrogate(word.at(2));
  calogen::Workspace work;
  const std::size_t C = surrogate.conditions().size(), V = surrogate.voxels(), Z = surrogate.latent_size();
  if (what == "noise") {
    const std::size_t n = std::stoul(word.at(5));
    std::vector<float> found(n * Z);
    surrogate.latents(std::stoull(word.at(3)), std::stoull(word.at(4)), n, found.data(), work);
    write(word.at(6), found);
  } else if (what == "decode") {
    const std::vector<float> latents = read(word.at(3)), conditions = read(word.at(4));
    const std::size_t n = std::stoul(word.at(5));
    std::vector<float> whole(n * V), parts(n * V);
    surrogate.decode(latents.data(), conditions.data(), n, whole.data(), work);
    for (std::size_t i = 0, size = 1; i < n; size = size % 7 + 1) {
      const std::size_t rows = std::min(size, n - i);
      surrogate.decode(&latents[i * Z], conditions.data() + i * C, rows, &parts[i * V], work);
      i += rows;
    }
    if (parts != whole) throw std::logic_error("showers depend on the batch");
    write(word.at(6), whole);
  } else if (what == "sample") {
    const std::vector<float> conditions = read(word.at(4));
    const std::size_t n = std::stoul(word.at(5)), half = n / 2;
    const std::uint64_t seed = std::stoull(word.at(3));
    std::vector<float> found(n * V);
    std::thread other([&] {
      calogen::Workspace mine;
      surrogate.sample(seed, half, conditions.data() + half * C, n - half, &found[half * V], mine);
    });
    surrogate.sample(seed, 0, conditions.data(), half, found.data(), work);
    other.join();
    write(word.at(6), found);
  } else {
    const std::vector<float> conditions = read(word.at(3));
    const std::size_t n = std::stoul(word.at(4));
    std::vector<float> latents(n * Z), found(n * V);
    surrogate.latents(0, 0, n, latents.data(), work);
    const int one = static_cast<int>(n);
    std::cout << nanoseconds(one, [&](int i) {
      surrogate.decode(&latents[i * Z], conditions.data() + i * C, 1, found.data(), work);
    }) << " " << nanoseconds(one, [&](int i) {
      surrogate.sample(0, i, conditions.data() + i * C, 1, found.data(), work);
    }) << " " << nanoseconds(1, [&](int) {
      surrogate.decode(latents.data(), conditions.data(), n, found.data(), work);
    }) / static_cast<double>(n) << " " << nanoseconds(1, [&](int) {
      surrogate.sample(0, 0, conditions.data(), n, found.data(), work);
    }) / static_cast<double>(n) << "\n";
  }
  return 0;
} catch (const calogen::Error& error) {
  std::cerr << error.what() << "\n";
  return 2;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
