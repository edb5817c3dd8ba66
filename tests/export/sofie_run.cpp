// Showers by the code that ROOT's SOFIE generates: MODEL.hxx, weights, inputs (showers, latents, then energies), output.
#include SOFIE_HEADER

#include <cstdint>
#include <cstdlib>
#include <fstream>

// The two routines of BLAS that the code calls, column-major.
extern "C" void sgemm_(const char* ta, const char* tb, const int* m, const int* n, const int* k, const float* alpha,
                       const float* a, const int* lda, const float* b, const int* ldb, const float* beta, float* c,
                       const int* ldc) {
  const bool at = *ta == 't', bt = *tb == 't';
  for (int j = 0; j < *n; ++j)
    for (int i = 0; i < *m; ++i) {
      float sum = 0;
      for (int l = 0; l < *k; ++l) sum += (at ? a[l + i * *lda] : a[i + l * *lda]) * (bt ? b[j + l * *ldb] : b[l + j * *ldb]);
      float& out = c[i + j * *ldc];
      out = *alpha * sum + (*beta == 0 ? 0 : *beta * out);
    }
}
extern "C" void sgemv_(const char* t, const int* m, const int* n, const float* alpha, const float* a, const int* lda,
                       const float* x, const int* incx, const float* beta, const float* y, const int* incy) {
  const bool turned = *t == 't';
  float* out = const_cast<float*>(y);
  for (int i = 0; i < (turned ? *n : *m); ++i) {
    float sum = 0;
    for (int l = 0; l < (turned ? *m : *n); ++l) sum += (turned ? a[l + i * *lda] : a[i + l * *lda]) * x[l * *incx];
    out[i * *incy] = *alpha * sum + (*beta == 0 ? 0 : *beta * out[i * *incy]);
  }
}

int main(int, char** words) {
  const int size = std::atoi(words[4]), count = std::atoi(words[5]);
  SOFIE_NAMESPACE::Session session(words[1]);
  std::ifstream in(words[2], std::ios::binary);
  std::ofstream out(words[3], std::ios::binary);
  std::vector<float> latents(std::size_t(size) * count), energies(count);
  in.read(reinterpret_cast<char*>(latents.data()), latents.size() * 4);
  in.read(reinterpret_cast<char*>(energies.data()), energies.size() * 4);
  for (int i = 0; i < count; ++i) {
    const auto shower = session.infer(&latents[std::size_t(i) * size], &energies[i]);
    out.write(reinterpret_cast<const char*>(shower.data()), shower.size() * 4);
  }
}
