// Calorimeter showers of a calogen surrogate, in C++17: this header and one weights file, nothing else.
//
//     calogen::Surrogate surrogate("calogan_gamma/calogen_shower.weights");
//     calogen::Workspace work;                                        // one for each thread
//     std::vector<float> shower(surrogate.voxels());                  // MeV, in the order of calogen's voxels
//     const float conditions[] = {50000.f};                           // in the order of surrogate.conditions()
//     surrogate.sample(seed, index, conditions, 1, shower.data(), work);
//
// Shower `index` of a seed is the one that calogen.Surrogate.sample makes in Python: the same random numbers bit for
// bit, and the same energies to single precision. It depends on nothing else: not on the batch it is made in, nor on
// the thread. A Surrogate is constant once it is loaded, and may be shared by all threads.
//
// It uses the vector extensions of GCC and clang, as wide as the compiler is allowed to (-march=native); define
// CALOGEN_SCALAR, or use another compiler, to do without. Do not compile it with -ffast-math.
//
// Sections: 1 errors, 2 vectors, 3 random numbers, 4 the weights file, 5 conditions, 6 networks, 7 layer energies,
// 8 the shower frame, 9 what voxels depend on, 10 noise that neighbours share, 11 refinement, 12 numbers of hits,
// 13 the surrogate. Names are those of the Python modules in calogen/models/showers, which say why.
//
// SPDX-License-Identifier: BSD-3-Clause

#ifndef CALOGEN_SHOWER_HPP
#define CALOGEN_SHOWER_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#if !defined(CALOGEN_SCALAR) && !defined(__GNUC__)
#define CALOGEN_SCALAR
#endif

// Before loops over what the registers hold: they must be unrolled, or vectors go through memory.
#if defined(__clang__)
#define CALOGEN_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define CALOGEN_UNROLL _Pragma("GCC unroll 16")
#else
#define CALOGEN_UNROLL
#endif

namespace calogen {

// Files of one program that are compiled for different vectors must not share functions.
#if defined(CALOGEN_SCALAR)
inline namespace scalar {
constexpr int LANES = 1, WIDE = 4, TALL = 2;
#elif defined(__AVX512F__)
inline namespace lanes16 {
constexpr int LANES = 16, WIDE = 4, TALL = 6;
#elif defined(__AVX__)
inline namespace lanes8 {
constexpr int LANES = 8, WIDE = 2, TALL = 6;
#else
inline namespace lanes4 {
constexpr int LANES = 4, WIDE = 2, TALL = 4;
#endif
// LANES floats in a vector; a matrix product works on tiles of WIDE vectors and TALL rows: what the registers hold.

// ------------------------------------------------------------------------------------------------------- 1. Errors

// What is wrong, where, what was expected and found, and what to do.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <class... Parts>
[[noreturn]] inline void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(text.str());
}

// ------------------------------------------------------------------------------------------------------ 2. Vectors

#if defined(CALOGEN_SCALAR)
typedef float Vec;
typedef std::int32_t Int;
inline Vec select(bool mask, Vec yes, Vec no) { return mask ? yes : no; }
inline Vec from(Int i) { return static_cast<float>(i); }
inline float sum(Vec v) { return v; }
#else
typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef std::int32_t Int __attribute__((vector_size(LANES * 4)));
inline Vec select(Int mask, Vec yes, Vec no) { return mask ? yes : no; }
inline Vec from(Int i) { return __builtin_convertvector(i, Vec); }
inline float sum(Vec v) {
  float total = 0;
  for (int i = 0; i < LANES; ++i) total += v[i];
  return total;
}
#endif

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline Int load(const std::int32_t* p) {
  Int v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
inline Vec all(float x) { return x - Vec{}; }
inline Int bits(Vec v) {
  Int i;
  std::memcpy(&i, &v, sizeof v);
  return i;
}
inline Vec floats(Int i) {
  Vec v;
  std::memcpy(&v, &i, sizeof v);
  return v;
}
inline Vec max(Vec a, Vec b) { return select(a > b, a, b); }
inline Vec min(Vec a, Vec b) { return select(a < b, a, b); }
inline Vec clamp(Vec v, float low, float high) { return min(max(v, all(low)), all(high)); }

// exp(x + rest), the rest being what x lost in rounding. Relative error 1e-7; after Cephes.
inline Vec exponential(Vec x, Vec rest = Vec{}) {
  x = clamp(x, -87.f, 88.f);
  Vec n = x * 1.44269504f + 12582912.f;  // the nearest integer, in the last bits of the mantissa
  const Int power = bits(n) - 0x4b400000;
  n = n - 12582912.f;
  const Vec r = ((x - n * 0.693359375f) + n * 2.12194440e-4f) + rest;
  Vec p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r * r + r) + 1.f;
  return floats(bits(p) + power * (1 << 23));
}

// The logarithm of positive numbers. Relative error 1e-7; after Cephes.
inline Vec logarithm(Vec x) {
  const Int power = (bits(x) - 0x3f3504f3) >> 23;  // so that what is left lies between the roots of 1/2 and 2
  const Vec m = floats(bits(x) - power * (1 << 23)) - 1.f, e = from(power), square = m * m;
  Vec p = all(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  return (m + (m * square * p - 2.12194440e-4f * e - 0.5f * square)) + 0.693359375f * e;
}

// One over the root of positive numbers, by Newton's method. Relative error 1e-7.
inline Vec inverse_root(Vec x) {
  Vec y = floats(0x5f375a86 - (bits(x) >> 1));
  CALOGEN_UNROLL
  for (int i = 0; i < 3; ++i) y = y * (1.5f - 0.5f * x * y * y);
  return y + 0.5f * y * (1.f - x * y * y);
}

inline Vec root(Vec x) {
  const Vec y = inverse_root(x), r = x * y;
  return r + 0.5f * y * (x - r * r);
}

// The complementary error function. Relative error 2e-7, far out too; Numerical Recipes, section 6.2.
inline Vec erfc(Vec x) {
  const Vec z = max(x, -x), t = 1.f / (1.f + 0.5f * z);
  Vec p = all(0.17087277f);
  p = p * t - 0.82215223f;
  p = p * t + 1.48851587f;
  p = p * t - 1.13520398f;
  p = p * t + 0.27886807f;
  p = p * t - 0.18628806f;
  p = p * t + 0.09678418f;
  p = p * t + 0.37409196f;
  p = p * t + 1.00002368f;
  p = p * t - 1.26551223f;
  // p - z^2 with what it loses in rounding: the square of a number with few digits is exact, and what a sum of two
  // loses is, too (Knuth).
  const Vec few = floats(bits(z) & -4096), square = few * few, total = p - square, back = total - p;
  const Vec lost = (p - (total - back)) - (square + back);
  const Vec tail = t * exponential(total, lost - (z - few) * (z + few));
  return select(x < 0.f, 2.f - tail, tail);
}

// Floats in memory, aligned for vectors; all 0 at first.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t size) { resize(size); }
  void resize(std::size_t size) { lanes_.resize((size + LANES - 1) / LANES); }
  float* data() { return lanes_.empty() ? nullptr : lanes_[0].at; }
  const float* data() const { return lanes_.empty() ? nullptr : lanes_[0].at; }
  float& operator[](std::size_t i) { return data()[i]; }
  float operator[](std::size_t i) const { return data()[i]; }
  bool empty() const { return lanes_.empty(); }

 private:
  struct alignas(LANES * 4) Lanes {
    float at[LANES] = {};
  };
  std::vector<Lanes> lanes_;
};

inline int vectors(int size) { return (size + LANES - 1) / LANES; }

template <class T>
inline T clamp(T x, T low, T high) {
  return x > low ? (x < high ? x : high) : low;  // what is no number becomes the lower one
}

// ----------------------------------------------------------------------------------------------- 3. Random numbers

// The inverse of the normal distribution, as Cephes and scipy have it. Every operation is rounded by itself, so that
// results are the same bits everywhere.
#if defined(__GNUC__) && !defined(__clang__)
__attribute__((optimize("fp-contract=off")))
#endif
inline double
inverse_normal(double probability) {
#if defined(__clang__)
#pragma clang fp contract(off)
#endif
  static constexpr double P0[] = {-5.99633501014107895267E1, 9.80010754185999661536E1, -5.66762857469070293439E1,
                                  1.39312609387279679503E1, -1.23916583867381258016E0};
  static constexpr double Q0[] = {1.0, 1.95448858338141759834E0, 4.67627912898881538453E0, 8.63602421390890590575E1,
                                  -2.25462687854119370527E2, 2.00260212380060660359E2, -8.20372256168333339912E1,
                                  1.59056225126211695515E1, -1.18331621121330003142E0};
  static constexpr double P1[] = {4.05544892305962419923E0, 3.15251094599893866154E1, 5.71628192246421288162E1,
                                  4.40805073893200834700E1, 1.46849561928858024014E1, 2.18663306850790267539E0,
                                  -1.40256079171354495875E-1, -3.50424626827848203418E-2, -8.57456785154685413611E-4};
  static constexpr double Q1[] = {1.0, 1.57799883256466749731E1, 4.53907635128879210584E1, 4.13172038254672030440E1,
                                  1.50425385692907503408E1, 2.50464946208309415979E0, -1.42182922854787788574E-1,
                                  -3.80806407691578277194E-2, -9.33259480895457427372E-4};
  static constexpr double P2[] = {3.23774891776946035970E0, 6.91522889068984211695E0, 3.93881025292474443415E0,
                                  1.33303460815807542389E0, 2.01485389549179081538E-1, 1.23716634817820021358E-2,
                                  3.01581553508235416007E-4, 2.65806974686737550832E-6, 6.23974539184983293730E-9};
  static constexpr double Q2[] = {1.0, 6.02427039364742014255E0, 3.67983563856160859403E0, 1.37702099489081330271E0,
                                  2.16236993594496635890E-1, 1.34204006088543189037E-2, 3.28014464682127739104E-4,
                                  2.89247864745380683936E-6, 6.79019408009981274425E-9};
  const double small = 0.13533528323661269189;  // exp(-2)
  double y = probability;
  const bool upper = y > 1.0 - small;
  if (upper) y = 1.0 - y;
  if (y > small) {
    y -= 0.5;
    const double square = y * y;
    double above = P0[0], below = Q0[0];
    for (int i = 1; i < 5; ++i) above = above * square + P0[i];
    for (int i = 1; i < 9; ++i) below = below * square + Q0[i];
    return (y + y * (square * above / below)) * 2.50662827463100050242;
  }
  const double x = std::sqrt(-2.0 * std::log(y)), first = x - std::log(x) / x, z = 1.0 / x;
  const double *P = x < 8.0 ? P1 : P2, *Q = x < 8.0 ? Q1 : Q2;
  double above = P[0], below = Q[0];
  for (int i = 1; i < 9; ++i) above = above * z + P[i];
  for (int i = 1; i < 9; ++i) below = below * z + Q[i];
  const double found = first - z * above / below;
  return upper ? found : -found;
}

inline void multiply(std::uint64_t a, std::uint64_t b, std::uint64_t& high, std::uint64_t& low) {
#if defined(__SIZEOF_INT128__)
  __extension__ typedef unsigned __int128 Wide;
  const Wide product = static_cast<Wide>(a) * b;
  high = static_cast<std::uint64_t>(product >> 64);
  low = static_cast<std::uint64_t>(product);
#else
  const std::uint64_t half = 0xffffffffu, a0 = a & half, a1 = a >> 32, b0 = b & half, b1 = b >> 32;
  const std::uint64_t middle = a1 * b0 + ((a0 * b0) >> 32), other = a0 * b1 + (middle & half);
  high = a1 * b1 + (middle >> 32) + (other >> 32);
  low = a * b;
#endif
}

// Philox 4x64 (Salmon et al. 2011) as numpy has it: four words for each value of the counter.
inline void philox(std::uint64_t counter, std::uint64_t seed, std::uint64_t* out) {
  std::uint64_t c[4] = {counter, 0, 0, 0}, key[2] = {seed, 0};
  for (int i = 0; i < 10; ++i) {
    std::uint64_t high0, low0, high1, low1;
    multiply(0xD2E7470EE14C6C93u, c[0], high0, low0);
    multiply(0xCA5A826395121157u, c[2], high1, low1);
    c[0] = high1 ^ c[1] ^ key[0];
    c[1] = low1;
    c[2] = high0 ^ c[3] ^ key[1];
    c[3] = low0;
    key[0] += 0x9E3779B97F4A7C15u;
    key[1] += 0xBB67AE8584CAA73Bu;
  }
  std::copy(c, c + 4, out);
}

// --------------------------------------------------------------------------------------------- 4. The weights file

// Arrays by name. Little-endian: the word CALOGENW, a format version, the CRC-32 of what follows, its length; then of
// every array its name (24 bytes), what it holds (f: float32, d: float64, i: int32, t: text), how many, and the
// numbers, filled up to a multiple of 8 bytes.
class WeightsFile {
 public:
  static constexpr std::uint32_t FORMAT = 1;

  explicit WeightsFile(const std::string& path) : path_(path) {
    std::ifstream in(path, std::ios::binary);
    if (!in) fail("cannot read the weights file ", path, ": see whether it is there");
    bytes_.assign(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
    if (bytes_.size() < 8 || std::memcmp(bytes_.data(), "CALOGENW", 8) != 0)
      fail(path, " is not a weights file of calogen: expected one that `calogen export` wrote for C++");
    if (bytes_.size() < HEAD) fail(path, " is cut short: ", bytes_.size(), " bytes; copy it again");
    const auto version = number<std::uint32_t>(8), checksum = number<std::uint32_t>(12);
    const auto length = number<std::uint64_t>(16);
    if (version > FORMAT)
      fail(path, " has format ", version, ", and this header knows formats up to ", FORMAT,
           ": use the header that was exported with it");
    if (bytes_.size() - HEAD < length)
      fail(path, " is cut short: expected ", length + HEAD, " bytes, found ", bytes_.size(), "; copy it again");
    if (bytes_.size() - HEAD != length || crc32() != checksum)
      fail(path, " is damaged: its checksum differs; copy it again");
    for (std::size_t at = HEAD; at + 40 <= bytes_.size();) {
      const std::string name(&bytes_[at], strnlen_(&bytes_[at], 24));
      const char kind = bytes_[at + 24];
      const auto count = static_cast<std::size_t>(number<std::uint64_t>(at + 32));
      const std::size_t each = kind == 'd' ? 8 : kind == 't' ? 1 : 4;
      if (count > (bytes_.size() - at - 40) / each) fail(path, " is damaged: array '", name, "' is cut short");
      arrays_[name] = {kind, at + 40, count};
      at += 40 + (count * each + 7) / 8 * 8;
    }
  }

  std::string text(const std::string& name) const {
    const Array& a = find(name, 't');
    return std::string(bytes_.data() + a.start, a.count);
  }
  std::vector<std::string> lines(const std::string& name) const {
    std::vector<std::string> found;
    std::istringstream in(text(name));
    for (std::string line; std::getline(in, line);) found.push_back(line);
    return found;
  }
  std::vector<float> floats(const std::string& name, std::size_t count) const { return get<float>(name, 'f', count); }
  std::vector<double> doubles(const std::string& name, std::size_t count) const {
    return get<double>(name, 'd', count);
  }
  std::vector<std::int32_t> integers(const std::string& name, std::size_t count) const {
    return get<std::int32_t>(name, 'i', count);
  }
  std::vector<std::int32_t> integers(const std::string& name) const {
    return integers(name, find(name, 'i').count);
  }
  // Single-precision numbers to be computed with in double precision.
  std::vector<double> widened(const std::string& name, std::size_t count) const {
    const std::vector<float> found = floats(name, count);
    return std::vector<double>(found.begin(), found.end());
  }
  int integer(const std::string& name) const { return integers(name, 1)[0]; }
  double real(const std::string& name) const { return doubles(name, 1)[0]; }
  bool has(const std::string& name) const { return arrays_.count(name) > 0; }

 private:
  static constexpr std::size_t HEAD = 24;
  struct Array {
    char kind;
    std::size_t start, count;
  };

  static std::size_t strnlen_(const char* text, std::size_t most) { return std::find(text, text + most, '\0') - text; }

  const Array& find(const std::string& name, char kind) const {
    const auto found = arrays_.find(name);
    if (found == arrays_.end() || found->second.kind != kind) fail(path_, " is damaged: array '", name, "' is missing");
    return found->second;
  }

  template <class T>
  std::vector<T> get(const std::string& name, char kind, std::size_t count) const {
    const Array& a = find(name, kind);
    if (a.count != count) fail(path_, " is damaged: array '", name, "' has ", a.count, " numbers, expected ", count);
    std::vector<T> found(count);
    for (std::size_t i = 0; i < count; ++i) found[i] = number<T>(a.start + i * sizeof(T));
    return found;
  }

  template <class T>
  T number(std::size_t at) const {
    typename std::conditional<sizeof(T) == 8, std::uint64_t, std::uint32_t>::type whole = 0;
    for (std::size_t i = sizeof(T); i-- > 0;) whole = whole << 8 | static_cast<unsigned char>(bytes_[at + i]);
    T found;
    std::memcpy(&found, &whole, sizeof(T));
    return found;
  }

  std::uint32_t crc32() const {
    std::uint32_t table[256], crc = 0xffffffffu;
    for (std::uint32_t i = 0; i < 256; ++i) {
      table[i] = i;
      for (int k = 0; k < 8; ++k) table[i] = table[i] >> 1 ^ (table[i] & 1u ? 0xedb88320u : 0u);
    }
    for (std::size_t i = HEAD; i < bytes_.size(); ++i)
      crc = crc >> 8 ^ table[(crc ^ static_cast<unsigned char>(bytes_[i])) & 0xffu];
    return ~crc;
  }

  std::string path_;
  std::vector<char> bytes_;
  std::map<std::string, Array> arrays_;
};

// -------------------------------------------------------------------------------------------------- 5. Conditions

// What showers are conditioned on: name, unit, trained range; or the labels that were trained, with their numbers.
struct Condition {
  std::string name, unit;
  double low, high;
  std::vector<std::pair<std::string, int>> labels;
};

// Where a voxel is: its layer, the centre of its cell and the middle of its layer in mm, the depth 0 being the plane of
// impact points; it is no number where calogen was not told where layers begin and end.
struct Place {
  int layer;
  double x, y, z;
};

// Conditions as the networks see them, about -1 to 1 (models/conditions.py, scale_conditions).
class Scaling {
 public:
  Scaling() = default;
  Scaling(const WeightsFile& file, const std::string& what)
      : source_(file.integers(what + ".columns")),
        logarithmic_(file.integers(what + ".logarithmic", source_.size())),
        labels_(file.integers(what + ".labels", source_.size())),
        offset_(file.doubles(what + ".offset", source_.size())),
        slope_(file.doubles(what + ".slope", source_.size())) {
    size = static_cast<int>(source_.size());
    for (int labels : labels_) size += labels > 2 ? labels - 2 : 0;
  }

  void operator()(const float* conditions, double* scaled) const {
    std::size_t next = source_.size();
    for (std::size_t i = 0; i < source_.size(); ++i) {
      const double value = conditions[source_[i]];
      scaled[i] = (logarithmic_[i] ? std::log(value) : value) * slope_[i] + offset_[i];
      if (labels_[i] <= 2) continue;
      // Deviation coding: K labels are K - 1 columns, of which all but the first follow after all conditions.
      const int label = clamp(static_cast<int>(clamp(value, 0.0, 1e6)), 0, labels_[i] - 1);
      for (int k = 0; k < labels_[i] - 1; ++k)
        scaled[k ? next++ : i] = label == labels_[i] - 1 ? -1.0 : label == k ? 1.0 : 0.0;
    }
  }

  int size = 0;  // columns that it makes

 private:
  std::vector<std::int32_t> source_, logarithmic_, labels_;
  std::vector<double> offset_, slope_;
};

// ----------------------------------------------------------------------------------------------------- 6. Networks

// A matrix (inputs, outputs) that rows are multiplied by. It is kept in panels of a few vectors of outputs.
class Matrix {
 public:
  Matrix() = default;
  // Outputs from the first one on, of a matrix with so many columns.
  Matrix(const float* weights, int inputs, int columns, int first, int outputs) : inputs_(inputs) {
    const int count = vectors(outputs), panels = (count + WIDE - 1) / WIDE;
    weights_.resize(static_cast<std::size_t>(inputs) * count * LANES);
    std::size_t start = 0;
    for (int p = 0; p < panels; ++p) {
      const int begin = p * count / panels, width = (p + 1) * count / panels - begin;
      panels_.push_back({begin, width, start});
      for (int i = 0; i < inputs; ++i)
        for (int k = 0; k < width * LANES; ++k, ++start) {
          const int column = begin * LANES + k;
          if (column < outputs) weights_[start] = weights[static_cast<std::size_t>(i) * columns + first + column];
        }
    }
  }

  // Rows y, y_step apart, of rows x that are x_step apart; or add to what is there.
  void multiply(const float* x, std::size_t x_step, int rows, float* y, std::size_t y_step, bool add = false) const {
    for (const Panel& panel : panels_) {
      const Task task{x, y + panel.first * LANES, x_step, y_step, weights_.data() + panel.start, rows, add};
      switch (panel.width) {
        case 1: columns<1>(task); break;
        case 2: columns<2>(task); break;
        case 3: columns<3>(task); break;
        default: columns<4>(task);
      }
    }
  }

  int inputs() const { return inputs_; }

 private:
  struct Panel {
    int first, width;
    std::size_t start;
  };

  struct Task {
    const float* x;
    float* y;
    std::size_t x_step, y_step;
    const float* weights;
    int rows;
    bool add;
  };

  template <int WIDTH>
  void columns(const Task& task) const {
    int r = 0;
    for (; r + TALL <= task.rows; r += TALL) tile<TALL, WIDTH>(task, r);
    for (; r + 2 <= task.rows; r += 2) tile<2, WIDTH>(task, r);
    for (; r < task.rows; ++r) tile<1, WIDTH>(task, r);
  }

  // Every row is added up in the same order, however many there are: bits do not depend on the batch.
  template <int ROWS, int WIDTH>
  void tile(const Task& task, int first) const {
    Vec found[ROWS][WIDTH] = {};
    const float *x = task.x + first * task.x_step, *w = task.weights;
    for (int i = 0; i < inputs_; ++i, w += WIDTH * LANES) {
      Vec column[WIDTH];
      CALOGEN_UNROLL
      for (int k = 0; k < WIDTH; ++k) column[k] = load(w + k * LANES);
      CALOGEN_UNROLL
      for (int r = 0; r < ROWS; ++r) {
        const Vec value = all(x[r * task.x_step + i]);
        CALOGEN_UNROLL
        for (int k = 0; k < WIDTH; ++k) found[r][k] += value * column[k];
      }
    }
    CALOGEN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      float* y = task.y + (first + r) * task.y_step;
      CALOGEN_UNROLL
      for (int k = 0; k < WIDTH; ++k) store(y + k * LANES, task.add ? load(y + k * LANES) + found[r][k] : found[r][k]);
    }
  }

  int inputs_ = 0;
  Buffer weights_;
  std::vector<Panel> panels_;
};

// Linear layers with LeakyReLU after each but the last, and after that too if it is a hidden one.
class Network {
 public:
  Network() = default;
  Network(const WeightsFile& file, const std::string& what, bool hidden) : hidden_(hidden) {
    if (!file.has(what + ".sizes")) return;  // its last layer is 0, and so is the network
    sizes_ = file.integers(what + ".sizes");
    for (std::size_t i = 0; i + 1 < sizes_.size(); ++i) {
      const int in = sizes_[i], out = sizes_[i + 1];
      const std::string number = what + "." + std::to_string(i);
      matrices_.emplace_back(file.floats(number + ".weight", std::size_t(in) * out).data(), in, out, 0, out);
      biases_.push_back(file.floats(number + ".bias", out));
    }
  }

  bool zero() const { return matrices_.empty(); }
  int outputs() const { return zero() ? 0 : sizes_.back(); }
  int widest() const { return zero() ? 0 : vectors(*std::max_element(sizes_.begin(), sizes_.end())) * LANES; }

  // Results are in the last `widest()` numbers a row of two halves of `space`; returns where.
  const float* operator()(const float* x, std::size_t step, int rows, Buffer& space) const {
    const std::size_t wide = widest();
    space.resize(2 * rows * wide);
    float *here = space.data(), *there = here + rows * wide;
    for (std::size_t i = 0; i < matrices_.size(); ++i) {
      matrices_[i].multiply(x, step, rows, here, wide);
      for (int r = 0; r < rows; ++r)
        for (int k = 0; k < sizes_[i + 1]; ++k) {
          float& value = here[r * wide + k];
          value += biases_[i][k];
          if (hidden_ || i + 1 < matrices_.size()) value = std::max(value, 0.1f * value);
        }
      x = here;
      step = wide;
      std::swap(here, there);
    }
    return x;
  }

 private:
  bool hidden_ = false;
  std::vector<std::int32_t> sizes_;
  std::vector<Matrix> matrices_;
  std::vector<std::vector<float>> biases_;
};

// ------------------------------------------------------------------------------------------------ 7. Layer energies

// Where a number lies between increasing stations: after which one, and what part of the way to the next.
struct Between {
  int station;
  double above;
};

template <class T>
inline Between between(const T* stations, int count, double x, std::size_t step = 1) {
  int s = 0;
  while (s + 2 < count && x >= stations[(s + 1) * step]) ++s;
  const double low = stations[s * step], high = stations[(s + 1) * step];
  return {s, clamp((x - low) / (high - low), 0.0, 1.0)};
}

// Energies of the layers from standard normals (energies.py, LayerEnergies.inverse), in double precision.
class LayerEnergies {
 public:
  LayerEnergies() = default;
  explicit LayerEnergies(const WeightsFile& file)
      : size(file.integer("energies.size")),
        energy_column_(file.integer("energies.energy_column")),
        scaled_(file.integer("energies.scaled")),
        conserves_(file.integer("conserves_energy") != 0),
        knee_(file.real("knee")),
        threshold_(file.real("threshold")),
        most_(file.real("most_response")),
        order_(file.integers("energies.order", size)),
        stations_(file.widened("energies.stations", STATIONS)),
        limits_(file.widened("energies.limits", 2 * size)) {
    const int others = scaled_ - (energy_column_ >= 0);
    features_ = 2 + STATIONS + 2 * others + others * (others + 1) / 2;
    location_ = file.widened("energies.location", std::size_t(features_) * size);
    log_scale_ = file.widened("energies.log_scale", std::size_t(features_) * size);
    empty_logits_ = file.widened("energies.empty_logits", std::size_t(features_) * size);
    linear_ = file.widened("energies.linear", std::size_t(STATIONS) * size * size);
    direction_ = file.widened("energies.direction", std::size_t(size) * size);
    bent_ = file.widened("energies.bent", std::size_t(2) * TERMS * size);
    for (const char* name : {"energies.residual", "energies.levelled", "energies.marginal"})
      tables_.push_back(file.widened(name, std::size_t(size) * STATIONS * POINTS));
  }

  struct Space {
    std::vector<double> normals, others, design, mean, log_scale, along, shared, inner, location, scale, logits;
    std::vector<char> empty;
  };

  // Energies in MeV of normals (D,), scaled conditions and the incident energy.
  void inverse(const float* given, const double* scaled, double incident, double* energies, Space& s) const {
    const double height_scaled = energy_column_ < 0 ? 0.0 : scaled[energy_column_];
    const Between at = between(stations_.data(), STATIONS, height_scaled);
    const double height = -1 + 2 * (at.station + at.above) / (STATIONS - 1);
    s.normals.resize(size);
    for (int i = 0; i < size; ++i) s.normals[i] = clamp<double>(given[i], -MOST_NORMAL, MOST_NORMAL);
    dependence(at, height, s);

    // Features of location, log scale and log odds of being empty.
    s.others.clear();
    for (int i = 0; i < scaled_; ++i)
      if (i != energy_column_) s.others.push_back(scaled[i]);
    s.design.assign({1.0, height});
    for (int k = 0; k < STATIONS; ++k) s.design.push_back(near(at, k));
    s.design.insert(s.design.end(), s.others.begin(), s.others.end());
    for (double other : s.others) s.design.push_back(other * height);
    for (std::size_t a = 0; a < s.others.size(); ++a)
      for (std::size_t b = a; b < s.others.size(); ++b) s.design.push_back(s.others[a] * s.others[b]);
    regression(location_, s.design, s.location);
    regression(log_scale_, s.design, s.scale);
    regression(empty_logits_, s.design, s.logits);

    // Independent normals to dependent ones, whose marginal distributions are normal again.
    s.inner.resize(size);
    s.empty.assign(size, 0);
    double smallest = std::numeric_limits<double>::infinity();
    int nearest = -1, layers = 0;
    for (int i = 0; i < size; ++i) {
      const double dependent =
          s.mean[i] + std::exp(clamp(s.log_scale[i], -8.0, 3.0)) * look_up(RESIDUAL, i, at, s.normals[i]);
      const double levelled = clamp(look_up(LEVELLED, i, at, dependent), -MOST_NORMAL, MOST_NORMAL);
      s.inner[i] = levelled;
      // A layer is empty where the upper tail of its normal exceeds the probability of being full.
      double empty = order_[i] > 0 ? 1 / (1 + std::exp(-s.logits[i])) : 0.0, excess = -1.0;
      if (empty <= 1e-5) empty = 0.0;
      const double full = 1 - empty;
      if (full < 1) {
        const double tail = std::erfc(levelled * 0.70710678118654752440) / 2;
        excess = tail - full;
        s.empty[i] = excess > 0;
        const double part = tail / std::max(full, 1e-6);
        s.inner[i] = -inverse_normal(clamp(excess > 0 ? 0.5 : part, 1e-9, 1 - 1e-9));
      }
      if (order_[i] > 0 && excess < smallest) {
        smallest = excess;
        nearest = i;
      }
      layers += order_[i] > 0;
    }
    if (nearest >= 0 && s.empty[nearest]) {  // not all are empty: the nearest to being full is not
      s.empty[nearest] = 0;
      const double full = 1 / (1 + std::exp(s.logits[nearest]));
      const double tail = smallest + full;
      s.inner[nearest] = -inverse_normal(clamp(tail / std::max(full, 1e-6), 1e-9, 1 - 1e-9));
    }

    // The variables: the total, and the logarithm of each layer's share of it.
    double total = 0;
    for (int i = 0; i < size; ++i) {
      const double variable = s.location[i] + std::exp(s.scale[i]) * look_up(MARGINAL, i, at, s.inner[i]);
      s.mean[i] = std::exp(clamp(variable, limits_[i], limits_[size + i]));
      if (order_[i] == 0) total = s.mean[i];
    }
    if (energy_column_ < 0) {
      total = std::max(total - knee_, 0.0);
    } else {
      const double part = conserves_ ? 1 - (total - LEAK_FLOOR) : total - LEAK_FLOOR;
      total = incident * clamp(part, 0.0, most_);
    }
    double made = 0;
    for (int i = 0; i < size; ++i) {
      if (order_[i] == 0) continue;
      const double energy = std::max(s.mean[i] * (total + layers * knee_) - knee_, SMALLEST * knee_);
      energies[order_[i] - 1] = s.empty[i] ? 0.0 : energy;
      made += energies[order_[i] - 1];
    }
    for (int l = 0; l < layers; ++l) {
      energies[l] *= total / made;
      if (energies[l] < threshold_) energies[l] = 0;  // no voxel would show it
    }
  }

  int size = 0;  // D: the total and the layers

 private:
  static constexpr int STATIONS = 6, LEADING = 3, REACH = 4, PER_UNIT = 5, POINTS = 2 * REACH * PER_UNIT + 1;
  static constexpr int SHARED = 12, OWN = 6, TERMS = STATIONS + 2 * (SHARED + OWN);
  static constexpr double MOST_NORMAL = REACH - 1e-3, MOST_LEADING = 3.0, LEAK_FLOOR = 1e-4, SMALLEST = 1e-3;
  enum Table { RESIDUAL, LEVELLED, MARGINAL };

  static double near(const Between& at, int station) {
    return station == at.station ? 1 - at.above : station == at.station + 1 ? at.above : 0.0;
  }

  void regression(const std::vector<double>& table, const std::vector<double>& design, std::vector<double>& out) const {
    out.assign(size, 0.0);
    for (int f = 0; f < features_; ++f) accumulate(&table[std::size_t(f) * size], design[f], out);
  }

  void accumulate(const double* row, double factor, std::vector<double>& out) const {
    if (factor != 0)
      for (int i = 0; i < size; ++i) out[i] += factor * row[i];
  }

  // The mean and log spread of every variable given the normals before it (LayerEnergies._given).
  void dependence(const Between& at, double height, Space& s) const {
    s.mean.assign(size, 0.0);
    s.log_scale.assign(size, 0.0);
    s.along.assign(size, 0.0);
    for (int j = 0; j < size; ++j) {
      accumulate(&direction_[std::size_t(j) * size], s.normals[j], s.along);
      for (int k = 0; k < 2; ++k)
        accumulate(&linear_[(std::size_t(at.station + k) * size + j) * size],
                   s.normals[j] * near(at, at.station + k), s.mean);
    }
    double leading[LEADING] = {}, shared[SHARED];
    for (int i = 0; i < std::min(LEADING, size); ++i) leading[i] = clamp(s.normals[i], -MOST_LEADING, MOST_LEADING);
    int next = 0;
    for (double x : leading) shared[next++] = x;
    for (int a = 0; a < LEADING; ++a)
      for (int b = a; b < LEADING; ++b) shared[next++] = leading[a] * leading[b];
    for (double x : leading) shared[next++] = x * x * x - 3 * x;
    for (double& x : s.along) x = clamp(x, -MOST_LEADING, MOST_LEADING);
    for (int k = 0; k < 2; ++k) {
      std::vector<double>& out = k ? s.log_scale : s.mean;
      const double* bent = &bent_[std::size_t(k) * TERMS * size];
      for (int t = at.station; t < at.station + 2; ++t) accumulate(bent + t * size, near(at, t), out);
      for (int t = 0; t < SHARED; ++t) {
        accumulate(bent + (STATIONS + t) * size, shared[t], out);
        accumulate(bent + (STATIONS + SHARED + OWN + t) * size, shared[t] * height, out);
      }
      const double *own = bent + (STATIONS + SHARED) * size, *changing = own + (SHARED + OWN) * size;
      for (int i = 0; i < size; ++i) {
        const double p = s.along[i];
        const double terms[OWN] = {p, p * leading[0], p * leading[1], p * leading[2], p * p, p * p * p - 3 * p};
        for (int t = 0; t < OWN; ++t) out[i] += terms[t] * (own[t * size + i] + height * changing[t * size + i]);
      }
    }
  }

  // A table at a normal: straight lines between its points and between two stations.
  double look_up(Table which, int i, const Between& at, double normal) const {
    const double position = (clamp(normal, -MOST_NORMAL, MOST_NORMAL) + REACH) * PER_UNIT;
    const int point = static_cast<int>(position);
    const double* low = &tables_[which][(std::size_t(i) * STATIONS + at.station) * POINTS + point];
    const double* high = low + POINTS;
    const double left = low[0] + at.above * (high[0] - low[0]), right = low[1] + at.above * (high[1] - low[1]);
    return left + (position - point) * (right - left);
  }

  int energy_column_ = -1, scaled_ = 0, features_ = 0;
  bool conserves_ = false;
  double knee_ = 0, threshold_ = 0, most_ = 1;
  std::vector<std::int32_t> order_;
  std::vector<double> stations_, limits_, location_, log_scale_, empty_logits_, linear_, direction_, bent_;
  std::vector<std::vector<double>> tables_;
};

// ---------------------------------------------------------------------------------------------- 8. The shower frame

// Showers about their axis, shifted by whole cells to where the axis crosses each layer (frame.py, ShowerFrame).
class ShowerFrame {
 public:
  static constexpr int SIZE = 28, DRIVERS = 4, OWN = 2;  // features; drivers of all layers and of each

  ShowerFrame() = default;
  explicit ShowerFrame(const WeightsFile& file) {
    if (!file.has("frame.layers")) return;
    layers_ = file.integer("frame.layers");
    const std::size_t L = layers_;
    column_ = file.integers("frame.columns", 4);
    factor_ = file.doubles("frame.factors", 4);
    periods_ = file.doubles("frame.periods", 2);
    extent_ = file.widened("frame.extent", 2 * L);
    pitch_ = file.widened("frame.pitch", 2 * L);
    counts_ = file.integers("frame.counts", 2 * L);
    windows_ = file.integers("frame.windows", 2 * L);
    course_ = file.widened("frame.course", 2);
    spread_ = file.widened("frame.spread", 1)[0];
    depths_ = file.widened("frame.depths", 4 * L);
    steepest_ = file.widened("frame.steepest", 2);
    tails_ = file.widened("frame.tails", KNOTS * L);
    step_ = file.widened("frame.step", L);
    contained_ = file.widened("frame.contained", L);
  }

  explicit operator bool() const { return layers_ > 0; }

  // Where the axis crosses each layer: the cell, and where within it (0 to 1); and its slopes.
  struct Cells {
    std::vector<int> crossed;
    std::vector<double> offset;
    double tangent[2];
  };

  // Cells that the axis crosses, for conditions, the scaled incident energy and layer energies; none: a mean shower.
  void cells(const float* conditions, double energy, const double* energies, Cells& found) const {
    const double theta = number(conditions, 2), phi = number(conditions, 3);
    found.tangent[0] = std::tan(theta) * std::cos(phi);
    found.tangent[1] = std::tan(theta) * std::sin(phi);
    double late = 0, square = 0;
    if (energies) {
      double total = 0, deep = 0;
      for (int l = 0; l < layers_; ++l) {
        total += energies[l];
        deep += energies[l] * (extent_[2 * l] + extent_[2 * l + 1]) / 2;
      }
      if (total > 0) late = clamp((deep / total - course_[0] - course_[1] * energy) / spread_, -CLIP, CLIP);
      square = late * late - 1;
    }
    found.crossed.resize(2 * layers_);
    found.offset.resize(2 * layers_);
    for (int l = 0; l < layers_; ++l) {
      const double* d = &depths_[4 * l];
      const double wanted = d[0] + d[1] * energy + d[2] * late + d[3] * square;
      const double depth = clamp(wanted, extent_[2 * l], extent_[2 * l + 1]);
      for (int axis = 0; axis < 2; ++axis) {
        const int i = 2 * l + axis;
        const double place = (number(conditions, axis) + depth * found.tangent[axis]) / pitch_[i] + counts_[i] / 2.0;
        const double cell = std::floor(clamp(place, -1e6, 1e6));
        found.crossed[i] = static_cast<int>(cell);
        found.offset[i] = place - cell;
      }
    }
  }

  // What is left of impact and angle in a layer, (28,).
  void features(const Cells& cells, int layer, double* out) const {
    const double o[2] = {2 * cells.offset[2 * layer] - 1, 2 * cells.offset[2 * layer + 1] - 1};
    const double s[2] = {cells.tangent[0] / steepest_[0], cells.tangent[1] / steepest_[1]};
    const auto both = [&](auto function) {
      for (int axis = 0; axis < 2; ++axis) *out++ = function(o[axis], s[axis]);
    };
    both([](double a, double) { return a; });
    both([](double, double b) { return b; });
    both([](double a, double) { return a * a; });
    both([](double, double b) { return b * b; });
    both([](double a, double b) { return a * b; });
    both([](double a, double b) { return a * a * b; });
    both([](double a, double b) { return a * b * b; });
    both([](double a, double b) { return a * b * a * b; });
    both([](double a, double) { return a * a * a * a; });
    both([](double, double b) { return b * b * b * b; });
    *out++ = o[0] * o[1];
    *out++ = s[0] * s[1];
    *out++ = o[0] * s[1];
    *out++ = o[1] * s[0];
    for (int axis = 0; axis < 2; ++axis) *out++ = std::exp(-cells.offset[2 * layer + axis] / EDGE);
    for (int axis = 0; axis < 2; ++axis) *out++ = std::exp((cells.offset[2 * layer + axis] - 1) / EDGE);
  }

  // With what correlations change: slopes and their squares, then the layer's offsets, (6,).
  void drivers(const Cells& cells, int layer, double* out) const {
    for (int axis = 0; axis < 2; ++axis) {
      out[axis] = cells.tangent[axis] / steepest_[axis];
      out[2 + axis] = out[axis] * out[axis];
      out[4 + axis] = 2 * cells.offset[2 * layer + axis] - 1;
    }
  }

  // Cells of a layer on the read-out.
  int cells_of(int layer) const { return counts_[2 * layer] * counts_[2 * layer + 1]; }

  // A layer on the read-out from the same in its window: moved by whole cells, with the energy that its distance from
  // the edges leaves.
  void from_frame(const float* window, const Cells& cells, int layer, float* out) const {
    const int *counts = &counts_[2 * layer], *sizes = &windows_[2 * layer], *crossed = &cells.crossed[2 * layer];
    double energy = 0, found = 0;
    for (int i = 0; i < sizes[0] * sizes[1]; ++i) energy += window[i];
    float* next = out;
    for (int x = 0; x < counts[0]; ++x)
      for (int y = 0; y < counts[1]; ++y) {
        const int row = x + sizes[0] / 2 - crossed[0], column = y + sizes[1] / 2 - crossed[1];
        const bool there = row >= 0 && row < sizes[0] && column >= 0 && column < sizes[1];
        *next = there ? window[row * sizes[1] + column] : 0.f;
        found += *next++;
      }
    const double inside = containment(cells, layer), usual = contained_[layer];
    const double wanted = energy * (usual > 0 ? inside / usual : 1.0);
    const float factor = found > 0 ? static_cast<float>(wanted / std::max(found, 1e-30)) : 0.f;
    for (float* value = out; value != next; ++value) *value *= factor;
  }

  // The condition moved by whole common periods of the cells into its range, if it is an impact point and that can be.
  double equivalent(int column, double value, double low, double high) const {
    for (int axis = 0; axis < 2; ++axis)
      if (layers_ && column_[axis] == column && periods_[axis] > 0) {
        const double moved = value - periods_[axis] * std::ceil((value - high) / periods_[axis]);
        if (moved >= low) return moved;
      }
    return value;
  }

  // Why a particle that is outside the trained range misses the detector; empty: it does not.
  std::string misses(const float* conditions, double energy) const {
    const double theta = number(conditions, 2);
    if (!(theta >= 0 && theta < 1.5707963267948966)) return "the particle does not enter the detector";
    for (int axis = 0; axis < 2; ++axis)
      if (!(std::abs(number(conditions, axis)) <= pitch_[axis] * counts_[axis] / 2))
        return "the impact point is outside the face of the detector";
    Cells found;
    cells(conditions, energy, nullptr, found);
    for (int axis = 0; axis < 2; ++axis) {
      const int i = 2 * (layers_ - 1) + axis;
      const double place = found.crossed[i] + found.offset[i] - counts_[i] / 2.0;
      if (!(std::abs(place) <= counts_[i] / 2.0)) return "the axis of the shower leaves the detector at its side";
    }
    return "";
  }

  bool of_axis(int column) const {
    return layers_ && std::find(column_.begin(), column_.end(), column) != column_.end();
  }

 private:
  static constexpr int KNOTS = 25;
  static constexpr double CLIP = 3.0, EDGE = 0.1;

  double number(const float* conditions, int which) const {
    return column_[which] < 0 ? 0.0 : conditions[column_[which]] * factor_[which];
  }

  // The share of a mean shower's energy in a layer that lies on the read-out.
  double containment(const Cells& cells, int layer) const {
    double share = 1;
    for (int i = 2 * layer; i < 2 * layer + 2; ++i) {
      const double half = pitch_[i] * counts_[i] / 2, axis = (cells.crossed[i] + cells.offset[i]) * pitch_[i] - half;
      share *= std::max(1 - beyond(layer, half - axis) - beyond(layer, half + axis), 0.0);
    }
    return share;
  }

  // The share of a layer's energy beyond a straight line at some distance from the axis.
  double beyond(int layer, double distance) const {
    const double position = std::abs(distance) / step_[layer];
    const int knot = static_cast<int>(clamp(position, 0.0, KNOTS - 2.0));
    const double* tail = &tails_[layer * KNOTS + knot];
    const double share = std::exp(tail[0] + (position - knot) * (tail[1] - tail[0]));
    return distance < 0 ? 1 - share : share;
  }

  int layers_ = 0;
  std::vector<std::int32_t> column_, counts_, windows_;
  std::vector<double> factor_, periods_, extent_, pitch_, course_, depths_, steepest_, tails_, step_, contained_;
  double spread_ = 1;
};

// ------------------------------------------------------------------------------------------ 9. What voxels depend on

// What the voxels of one layer of one shower depend on (voxels.py, Given).
struct Given {
  double energy, log_energy;
  float faint;     // whether the layer has far less energy than usual, or few voxels on: 0 to 1
  float together;  // how much of the correlations is left then
  float near[2];   // how near the two stations of energy are between which it lies ...
  int station;     // ... of which this is the first
};

// Features of voxels, drivers of their correlations, and what follows (voxels.py, VoxelShares.given).
class VoxelFeatures {
 public:
  VoxelFeatures() = default;
  explicit VoxelFeatures(const WeightsFile& file, int layers)
      : layers_(layers),
        energy_column_(file.integer("voxels.energy_column")),
        scaled_(file.integer("voxels.scaled")),
        plain_(file.integer("voxels.plain")),
        layer_place_(file.integer("voxels.layer_place")),
        local_(file.integer("voxels.local")),
        knee_(file.real("knee")),
        products_(file.integers("voxels.products")),
        centre_(file.widened("voxels.centre", std::size_t(plain_) * (layers + 1))),
        spread_(file.widened("voxels.spread", layers + 1)),
        stations_(file.widened("voxels.stations", 3)),
        few_(file.widened("voxels.few", layers)),
        together_(file.widened("together", layers)) {
    size = static_cast<int>(products_.size() / 3);
    drivers = file.integer("drivers");
    columns_ = scaled_ + 4 + local_;
  }

  double leading(const double* scaled) const { return energy_column_ < 0 ? 0.0 : scaled[energy_column_]; }

  // For all layers of one shower: what is given, features (L, F) and drivers (L, J), not yet centred.
  void operator()(const double* energies, const double* scaled, const ShowerFrame& frame,
                  const ShowerFrame::Cells& cells, Given* given, float* features, double* driven,
                  std::vector<double>& space) const {
    space.assign(columns_ + layers_ + 1, 0.0);
    double *column = space.data(), *profile = column + columns_;
    column[0] = 1;
    std::copy(scaled, scaled + scaled_, column + 1);
    column[scaled_ + 3] = leading(scaled) * leading(scaled);

    // Log energies and the depth, less their mean course with the conditions, in units of their spread about it.
    double total = 0, deep = 0;
    for (int l = 0; l < layers_; ++l) {
      total += energies[l];
      deep += l * energies[l];
      profile[l] = std::log(energies[l] + knee_);
    }
    profile[layers_] = deep / std::max(total, 1e-12);
    for (int p = 0; p < plain_; ++p) {
      const double x = product(column, p);
      for (int l = 0; l <= layers_; ++l) profile[l] -= x * centre_[p * (layers_ + 1) + l];
    }
    for (int l = 0; l <= layers_; ++l) profile[l] = clamp(profile[l] / spread_[l], -CLIP, CLIP);

    const Between at = between(stations_.data(), 3, leading(scaled));
    const double depth = std::tanh(profile[layers_]);
    for (int l = 0; l < layers_; ++l) {
      column[scaled_ + 1] = profile[l];
      column[scaled_ + 2] = profile[layers_];
      double* driver = driven + l * drivers;
      driver[0] = leading(scaled);
      driver[1] = depth;
      if (frame) {
        frame.features(cells, l, column + scaled_ + 4);
        frame.drivers(cells, l, driver + 2);
      }
      for (int f = 0; f < size; ++f) features[l * size + f] = static_cast<float>(product(column, f));
      const double log_energy = std::log(std::max(energies[l], 1e-9));
      const double unusual = (FAINT[0] - profile[l]) / FAINT[1], few = few_[l] - log_energy + 0.5;
      const double faint = clamp(std::max(unusual, few), 0.0, 1.0);
      given[l] = {energies[l],
                  log_energy,
                  static_cast<float>(faint),
                  static_cast<float>(1 - faint * (1 - together_[l])),
                  {static_cast<float>(1 - at.above), static_cast<float>(at.above)},
                  at.station};
    }
  }

  int size = 0, drivers = 0;  // F and J
  int layer_place() const { return layer_place_; }

 private:
  static constexpr double CLIP = 3.0, FAINT[2] = {-0.6, 0.5};

  double product(const double* column, int f) const {
    return column[products_[f]] * column[products_[size + f]] * column[products_[2 * size + f]];
  }

  int layers_ = 0, energy_column_ = -1, scaled_ = 0, plain_ = 0, layer_place_ = 0, local_ = 0;
  int columns_ = 0;
  double knee_ = 0;
  std::vector<std::int32_t> products_;
  std::vector<double> centre_, spread_, stations_, few_, together_;
};

// Where the voxels of the layers are in memory: each layer begins with a new vector. Those in between are never on.
struct Layout {
  std::vector<std::int32_t> sizes;
  std::vector<int> bounds;  // of the layers among the voxels
  std::vector<int> starts;  // of their vectors
  int layers = 0, voxels = 0, width = 0;

  Layout() = default;
  explicit Layout(std::vector<std::int32_t> given) : sizes(std::move(given)), layers(static_cast<int>(sizes.size())) {
    for (int size : sizes) {
      bounds.push_back(voxels);
      starts.push_back(width / LANES);
      voxels += size;
      width += vectors(size) * LANES;
    }
    starts.push_back(width / LANES);
  }
  int place(int layer, int cell) const { return starts[layer] * LANES + cell; }
  std::vector<int> places() const {
    std::vector<int> found;
    for (int l = 0; l < layers; ++l)
      for (int i = 0; i < sizes[l]; ++i) found.push_back(place(l, i));
    return found;
  }
  template <class T>
  void spread(const T* values, T* out) const {  // (V,) into (W,)
    for (int l = 0; l < layers; ++l) std::copy(values + bounds[l], values + bounds[l] + sizes[l], out + place(l, 0));
  }
};

// --------------------------------------------------------------------------------- 10. Noise that neighbours share

// Smooths the voxels' own noise along both axes of each layer and in depth (neighbours.py, SharedNoise).
class SharedNoise {
 public:
  SharedNoise() = default;
  SharedNoise(const WeightsFile& file, const Layout& layout) : layout_(layout) {
    const std::size_t L = layout.layers, V = layout.voxels;
    levels_ = file.widened("noise.levels", LEVELS * L);
    apart_ = file.widened("noise.apart", LEVELS * 2 * L);
    follows = std::any_of(apart_.begin(), apart_.end(), [](double x) { return x != 0; });
    const auto core = file.integers("noise.core", V);
    core_.assign(layout.width, 0);
    layout.spread(core.data(), core_.data());
    for (auto& c : core_) c = -c;  // a mask
    const auto shares = file.widened("noise.shares", 3 * LEVELS * 2 * L);
    const auto beside = file.integers("noise.beside", 3 * 2 * V);  // itself where there is none
    const std::vector<int> places = layout.places();
    for (int axis = 0; axis < 3; ++axis) {
      const auto first = shares.begin() + axis * LEVELS * 2 * L;
      Axis found{std::vector<double>(first, first + LEVELS * 2 * L), {}, Buffer(layout.width)};
      if (std::all_of(found.shares.begin(), found.shares.end(), [](double x) { return x == 0; })) continue;
      for (int side = 0; side < 2; ++side) {
        Side& there = found.sides[side];
        there.index.assign(layout.width, -1);
        there.mask.assign(layout.width, 0);
        for (std::size_t v = 0; v < V; ++v) {
          const int other = beside[(axis * 2 + side) * V + v];
          if (other == static_cast<int>(v)) continue;
          there.index[places[v]] = places[other];
          there.mask[places[v]] = -1;
          found.number[places[v]] += 1;
        }
        // Neighbours of a whole vector mostly lie side by side, too.
        for (int j = 0; j < layout.width / LANES; ++j) {
          int start = 0;
          bool known = false, run = true;
          for (int i = 0; i < LANES; ++i) {
            const int index = there.index[j * LANES + i];
            if (index < 0) continue;
            run = run && (!known || index - i == start);
            start = index - i;
            known = true;
          }
          there.start.push_back(run ? (known ? start : j * LANES) : GATHER);
        }
      }
      axes_.push_back(std::move(found));
    }
  }

  // Numbers in a row of noise, with a vector of zeros before and after the voxels.
  std::size_t row() const { return layout_.width + 2 * LANES; }

  // Correlated normals in place of independent ones (W,); `apart` gets what is added to standardised log shares.
  // `other` and `kept` are space; rows of noise begin with a vector of zeros.
  void operator()(float* own, const Given* given, float* other, float* kept, float* apart) const {
    const int L = layout_.layers;
    float *now = own + LANES, *next = other + LANES;
    if (follows) {
      std::copy(now, now + layout_.width, apart);
      std::fill(kept, kept + layout_.width, 1.f);
    }
    for (const Axis& axis : axes_) {
      for (int l = 0; l < L; ++l) {
        float share[2];
        at(axis.shares, given[l], l, share);
        for (int j = layout_.starts[l]; j < layout_.starts[l + 1]; ++j) {
          const Vec part = core(j, share), both = beside(axis.sides[0], j, now) + beside(axis.sides[1], j, now);
          const Vec scale = inverse_root(1.f + part * part * load(axis.number.data() + j * LANES));
          store(next + j * LANES, (load(now + j * LANES) + part * both) * scale);
          if (follows) store(kept + j * LANES, load(kept + j * LANES) * scale);
        }
      }
      std::swap(now, next);
    }
    if (now != own + LANES) std::copy(now, now + layout_.width, own + LANES);
    if (!follows) return;
    for (int l = 0; l < L; ++l) {
      float share[2];
      at(apart_, given[l], l, share);
      for (int j = layout_.starts[l] * LANES; j < layout_.starts[l + 1] * LANES; j += LANES)
        store(apart + j, core(j / LANES, share) * (load(apart + j) - load(kept + j) * load(own + LANES + j)));
    }
  }

  bool follows = false;  // whether energies follow a voxel's own noise anywhere

 private:
  static constexpr int LEVELS = 4, GATHER = std::numeric_limits<int>::min();
  struct Side {
    std::vector<std::int32_t> index, mask;
    std::vector<int> start;
  };
  struct Axis {
    std::vector<double> shares;  // (S, 2 L): of every layer, outside its core and inside
    Side sides[2];
    Buffer number;
  };

  // Values of both zones of a layer at its energy.
  void at(const std::vector<double>& values, const Given& given, int layer, float* out) const {
    const std::size_t L = layout_.layers;
    const Between level = between(&levels_[layer], LEVELS, given.log_energy, L);
    for (int zone = 0; zone < 2; ++zone) {
      const double* low = &values[level.station * 2 * L + 2 * layer + zone];
      out[zone] = static_cast<float>((1 - level.above) * low[0] + level.above * low[2 * L]);
    }
  }

  Vec core(int j, const float* both) const {
    const Int mask = load(&core_[j * LANES]);
    return floats((mask & bits(all(both[1]))) | (~mask & bits(all(both[0]))));
  }

  static Vec beside(const Side& side, int j, const float* noise) {
    if (side.start[j] != GATHER) return floats(load(&side.mask[j * LANES]) & bits(load(noise + side.start[j])));
    float found[LANES];
    for (int i = 0; i < LANES; ++i) {
      const int index = side.index[j * LANES + i];
      found[i] = index < 0 ? 0.f : noise[index];
    }
    return load(found);
  }

  Layout layout_;
  std::vector<double> levels_, apart_;
  std::vector<std::int32_t> core_;
  std::vector<Axis> axes_;
};

// --------------------------------------------------------------------------------------------------- 11. Refinement

// What projected training changed about voxel normals: patterns of groups of cells (patterns.py, ShapeRefinement).
class ShapeRefinement {
 public:
  ShapeRefinement() = default;
  ShapeRefinement(const WeightsFile& file, const Layout& layout, int drivers, int layer_place)
      : layout_(layout), drivers_(drivers), layer_place_(layer_place), framed_(drivers > 2) {
    active = file.has("refinement.coefficients");
    if (!active) return;
    const std::size_t L = layout.layers, V = layout.voxels;
    patterns_ = 3 + 3 + 2 + 4 * framed_;
    features_ = 2 * drivers + 3 + GROUPS + 2 * NEIGHBOURS;
    coefficients_ = file.floats("refinement.coefficients", L * patterns_ * GROUPS * features_);
    means_ = file.floats("refinement.means", L * GROUPS);
    spreads_ = file.floats("refinement.spreads", L * GROUPS);
    driver_means_ = file.widened("refinement.driver_means", drivers);
    group_ = file.integers("refinement.group", V);
    position_ = file.floats("refinement.position", 2 * V);
    beside_ = file.integers("noise.beside", 3 * 2 * V);
    places_ = layout.places();
    number_.assign(L * GROUPS, 0);
    for (int g : group_) number_[g] += 1;
    for (float& n : number_) n = std::max(n, 1.f);
  }

  struct Space {
    std::vector<float> capped, means, leaning, features, amplitudes;
  };

  // Change the normals (W,) of one shower, whose features are (L, F) and drivers (L, J).
  void operator()(float* normals, const float* features, int size, const double* drivers, Space& s) const {
    const int L = layout_.layers, V = layout_.voxels;
    s.capped.resize(V);
    s.means.assign(L * GROUPS, 0);
    s.leaning.assign(2 * L * GROUPS, 0);
    for (int v = 0; v < V; ++v) {
      s.capped[v] = clamp(normals[places_[v]], -FARTHEST, FARTHEST);
      s.means[group_[v]] += s.capped[v];
      for (int axis = 0; axis < 2; ++axis)
        s.leaning[axis * L * GROUPS + group_[v]] += s.capped[v] * position_[axis * V + v];
    }
    for (int g = 0; g < L * GROUPS; ++g) {
      s.means[g] = clamp((s.means[g] / number_[g] - means_[g]) / spreads_[g], -FARTHEST, FARTHEST);
      for (int axis = 0; axis < 2; ++axis) s.leaning[axis * L * GROUPS + g] /= number_[g];
    }
    for (int l = 0; l < L; ++l) {
      amplitudes(features[l * size + layer_place_], drivers + l * drivers_, l, s);
      change(normals, drivers + l * drivers_, l, s);
    }
  }

  bool active = false;

 private:
  static constexpr int GROUPS = 8, NEIGHBOURS = 2;
  static constexpr float FARTHEST = 4.f, LARGEST = 1.f;

  // Amplitudes (A,) of a layer: linear in energies, depth, and means of the groups here and in the layers beside.
  void amplitudes(float energy, const double* drivers, int layer, Space& s) const {
    s.features.assign({1.f});
    for (int j = 0; j < drivers_; ++j) s.features.push_back(static_cast<float>(drivers[j] - driver_means_[j]));
    s.features.push_back(energy);
    for (int j = 0; j < drivers_; ++j) s.features.push_back(s.features[1 + j] * s.features[1 + j]);
    s.features.push_back(energy * energy);
    for (int g = 0; g < GROUPS; ++g) s.features.push_back(s.means[layer * GROUPS + g]);
    for (int other : {layer - 1, layer + 1})
      for (int g = 0; g < NEIGHBOURS; ++g)
        s.features.push_back(other < 0 || other >= layout_.layers ? 0.f : s.means[other * GROUPS + g]);
    s.amplitudes.assign(patterns_ * GROUPS, 0);
    const float* c = &coefficients_[std::size_t(layer) * patterns_ * GROUPS * features_];
    for (float& amplitude : s.amplitudes)
      for (int f = 0; f < features_; ++f) amplitude += *c++ * s.features[f];
  }

  void change(float* normals, const double* drivers, int layer, const Space& s) const {
    const int L = layout_.layers, V = layout_.voxels;
    for (int v = layout_.bounds[layer]; v < layout_.bounds[layer] + layout_.sizes[layer]; ++v) {
      const float y = s.capped[v], *a = &s.amplitudes[group_[v] - layer * GROUPS];
      const auto amplitude = [&](int pattern) { return a[pattern * GROUPS]; };
      float sum = amplitude(0) + amplitude(1) * y + amplitude(2) * (y * y - 1);
      for (int axis = 0; axis < 3; ++axis) {
        float both = 0;
        for (int side = 0; side < 2; ++side) {
          const int other = beside_[(axis * 2 + side) * V + v];
          if (other != v) both += s.capped[other];
        }
        sum += amplitude(3 + axis) * both / 2;
      }
      for (int axis = 0; axis < 2; ++axis) {
        float lean = amplitude(6 + axis) * s.leaning[axis * L * GROUPS + group_[v]];
        if (framed_) {  // where the axis crosses the cell, and how steeply
          const int offset = drivers_ - 2 + axis, slope = 2 + axis;
          lean += amplitude(8 + 2 * axis) * static_cast<float>(drivers[offset] - driver_means_[offset]);
          lean += amplitude(9 + 2 * axis) * static_cast<float>(drivers[slope] - driver_means_[slope]);
        }
        sum += position_[axis * V + v] * lean;
      }
      normals[places_[v]] += clamp(sum, -LARGEST, LARGEST);
    }
  }

  Layout layout_;
  int drivers_ = 0, layer_place_ = 0, patterns_ = 0, features_ = 0;
  bool framed_ = false;
  std::vector<float> coefficients_, means_, spreads_, position_, number_;
  std::vector<double> driver_means_;
  std::vector<std::int32_t> group_, beside_;
  std::vector<int> places_;
};

// ----------------------------------------------------------------------------------------------- 12. Numbers of hits

// Sets how many voxels of a layer with little energy are on (counts.py, HitCounts).
class HitCounts {
 public:
  HitCounts() = default;
  HitCounts(const WeightsFile& file, int layers)
      : layers_(layers),
        levels_(file.floats("counts.levels", std::size_t(LEVELS) * layers)),
        limits_(file.floats("counts.limits", std::size_t(LEVELS) * MOST * layers)) {}

  // By how much all excesses (V_layer,) of a layer have to fall, so that as many voxels are on as there should be.
  float shift(const float* excess, int size, double log_energy, int layer, std::vector<float>& space) const {
    const auto logs = static_cast<float>(log_energy);
    if (!(logs < levels_[(LEVELS - 1) * layers_ + layer])) return 0;
    // How many voxels are on, and how nearly one more or less is: their number is this, rounded up.
    int on = 0;
    float last = std::numeric_limits<float>::infinity(), after = -last;
    for (int i = 0; i < size; ++i) {
      on += excess[i] > 0;
      last = std::min(last, excess[i] > 0 ? excess[i] : last);
      after = std::max(after, excess[i] > 0 ? after : excess[i]);
    }
    float number = static_cast<float>(on);
    if (on == 0)
      number = std::max(after, -1e3f);
    else if (on < size)
      number = static_cast<float>(on - 1) + last / std::max(last - after, 1e-6f);
    if (!(number <= MOST)) return 0;
    const Between level = between(&levels_[layer], LEVELS, logs, layers_);
    int wanted = 1;
    for (int k = 0; k < MOST; ++k) {
      const float* low = &limits_[(std::size_t(level.station) * MOST + k) * layers_ + layer];
      const float limit = low[0] + static_cast<float>(level.above) * (low[std::size_t(MOST) * layers_] - low[0]);
      wanted += number > limit + TIE;
    }
    // What comes next in order is just off. Where the number is right, or out of reach, nothing changes.
    if (static_cast<float>(wanted) == std::max(std::ceil(number), 1.f) || wanted >= std::min(MOST + 2, size)) return 0;
    space.assign(excess, excess + size);
    std::nth_element(space.begin(), space.begin() + wanted, space.end(), std::greater<float>());
    return space[wanted];
  }

 private:
  static constexpr int LEVELS = 8, MOST = 24;
  static constexpr float TIE = 1e-3f;

  int layers_ = 0;
  std::vector<float> levels_, limits_;
};

// -------------------------------------------------------------------------------------------------- 13. The surrogate

// What a thread computes in. It grows when it is first used, and can be used with any number of surrogates in turn.
struct Workspace {
  Buffer latents, inputs, network, hidden, mixed, leaning, shift, own, other, kept, apart, normals, excess, shares;
  Buffer features, quadratic;
  std::vector<float> energy_normals, foremost;
  std::vector<double> scaled, energies, drivers, columns;
  std::vector<Given> given;
  std::vector<ShowerFrame::Cells> cells;
  std::vector<std::uint64_t> words;
  LayerEnergies::Space of_energies;
  ShapeRefinement::Space of_refinement;
};

class Surrogate {
 public:
  // Throws calogen::Error if the file is missing, damaged, of another kind or of a newer format.
  explicit Surrogate(const std::string& path) { read(WeightsFile(path)); }

  const std::string& name() const { return name_; }
  const std::string& digest() const { return digest_; }  // of the checkpoint's card: what decides showers
  const std::string& unit() const { return unit_; }
  const std::vector<Condition>& conditions() const { return conditions_; }
  const std::vector<Place>& places() const { return places_; }  // of the voxels
  int voxels() const { return voxels_; }
  int latent_size() const { return energies_.size + factors_ + layout_.voxels; }

  // Showers index to index + n of a seed, (n, V) in MeV, at conditions (n, C) in their units.
  // Throws calogen::Error if conditions are outside the range that was trained.
  void sample(std::uint64_t seed, std::uint64_t index, const float* conditions, std::size_t n, float* showers,
              Workspace& work) const {
    check(conditions, n);
    const std::size_t C = conditions_.size(), Z = latent_size();
    work.latents.resize(ROWS * Z);
    for (std::size_t i = 0; i < n; i += ROWS) {
      const std::size_t rows = std::min<std::size_t>(ROWS, n - i);
      latents(seed, index + i, rows, work.latents.data(), work);
      block(work.latents.data(), conditions + i * C, static_cast<int>(rows), showers + i * voxels_, work);
    }
  }

  std::vector<float> sample(std::uint64_t seed, std::uint64_t index, const std::vector<float>& conditions) const {
    Workspace work;
    const std::size_t C = conditions_.size(), n = C ? conditions.size() / C : 1;
    if (n * C != conditions.size()) fail("expected ", C, " conditions for every shower, found ", conditions.size());
    std::vector<float> showers(n * voxels_);
    sample(seed, index, conditions.data(), n, showers.data(), work);
    return showers;
  }

  // Showers (n, V) of given standard normals (n, Z); conditions (n, C) are not checked.
  void decode(const float* latents, const float* conditions, std::size_t n, float* showers, Workspace& work) const {
    const std::size_t C = conditions_.size(), Z = latent_size();
    for (std::size_t i = 0; i < n; i += ROWS)
      block(latents + i * Z, conditions + i * C, static_cast<int>(std::min<std::size_t>(ROWS, n - i)),
            showers + i * voxels_, work);
  }

  // The standard normals (n, Z) of showers index to index + n of a seed (production/noise.py).
  void latents(std::uint64_t seed, std::uint64_t index, std::size_t n, float* out, Workspace& work) const {
    const std::size_t fine = energies_.size, coarse = latent_size() - fine;
    const std::size_t fine_words = (fine + 1) / 2, counters = (fine_words + (coarse + 3) / 4 + 3) / 4;
    work.words.resize(4 * counters);
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t b = 0; b < counters; ++b) philox((index + i) * counters + b + 1, seed, &work.words[4 * b]);
      for (std::size_t k = 0; k < fine; ++k) {
        const auto half = static_cast<std::uint32_t>(work.words[k / 2] >> (k % 2 ? 32 : 0));
        *out++ = static_cast<float>(inverse_normal((half + 0.5) / 4294967296.0));
      }
      const std::uint64_t* word = &work.words[fine_words];
      std::size_t k = 0;
      for (; k + 4 <= coarse; k += 4, ++word, out += 4) {
        out[0] = table_[*word & 0xffffu];
        out[1] = table_[*word >> 16 & 0xffffu];
        out[2] = table_[*word >> 32 & 0xffffu];
        out[3] = table_[*word >> 48];
      }
      for (; k < coarse; ++k) *out++ = table_[*word >> 16 * (k % 4) & 0xffffu];
    }
  }

  // Throws calogen::Error if any of n conditions is not finite, or outside the range that was trained.
  void check(const float* conditions, std::size_t n) const {
    const std::size_t C = conditions_.size();
    for (std::size_t i = 0; i < n; ++i, conditions += C)
      for (std::size_t c = 0; c < C; ++c) {
        const Condition& known = conditions_[c];
        double value = conditions[c];
        if (!known.labels.empty()) {
          const auto same = [&](const std::pair<std::string, int>& label) { return label.second == value; };
          if (std::none_of(known.labels.begin(), known.labels.end(), same)) refuse(known, i, value);
          continue;
        }
        const double margin = 1e-6 * std::max(std::abs(known.low), std::abs(known.high));
        if (value >= known.low - margin && value <= known.high + margin) continue;
        // Showers at points that differ by whole cells are the same.
        if (!std::isfinite(value) || !frame_.of_axis(static_cast<int>(c))) refuse(known, i, value);
        const double moved = frame_.equivalent(static_cast<int>(c), value, known.low - margin, known.high + margin);
        if (!(moved >= known.low - margin && moved <= known.high + margin)) refuse(known, i, value);
        std::vector<double> scaled(of_voxels_.size);
        of_voxels_(conditions, scaled.data());
        const std::string why = frame_.misses(conditions, features_.leading(scaled.data()));
        if (!why.empty()) fail(why, ": shower ", i, " of this call, ", known.name, " = ", value, " ", known.unit);
      }
  }

 private:
  static constexpr int ROWS = 24;    // showers at a time: a multiple of all TALL
  static constexpr int TOGETHER = 4; // of them that share the loading of a voxel's numbers
  static constexpr double ELECTRON = 0.51099895, LINE_REACH = 0.3;  // MeV
  static constexpr float LEAST_NOISE = 0.02f;

  [[noreturn]] static void refuse(const Condition& known, std::size_t row, double value) {
    std::ostringstream expected;
    if (known.labels.empty())
      expected << known.low << " to " << known.high << " " << known.unit;
    else
      for (const auto& label : known.labels) expected << label.second << " (" << label.first << ") ";
    fail("the surrogate was not trained there: shower ", row, " of this call, ", known.name, " = ", value, " ",
         known.unit, "; expected ", expected.str());
  }

  void read(const WeightsFile& file) {
    name_ = file.text("name");
    digest_ = file.text("digest");
    unit_ = file.text("unit");
    read_conditions(file);
    layout_ = Layout(file.integers("layer_sizes"));
    voxels_ = file.integer("voxels_out");
    read_places(file);
    factors_ = file.integer("factors");
    const int L = layout_.layers, V = layout_.voxels, W = layout_.width;
    table_ = file.floats("normals", 65536);
    threshold_ = static_cast<float>(file.real("threshold"));
    unit_in_mev_ = file.real("unit_in_mev");
    of_energies_ = Scaling(file, "energies");
    of_voxels_ = Scaling(file, "voxels");
    energy_ = file.integer("energy_column");
    energies_ = LayerEnergies(file);
    frame_ = ShowerFrame(file);
    features_ = VoxelFeatures(file, L);
    noise_ = SharedNoise(file, layout_);
    counts_ = HitCounts(file, L);
    refinement_ = ShapeRefinement(file, layout_, features_.drivers, features_.layer_place());
    energy_network_ = Network(file, "energy_network", false);
    hidden_ = Network(file, "shape_network", true);
    line_ = file.floats("voxels.line", L);

    // Correlations: loadings of the factors, and how they change with the drivers, of all layers and of each.
    drifting_ = file.integer("drifting");
    shared_ = file.integer("shared_drivers");
    const int drivers = features_.drivers, own = drivers - shared_, F = features_.size;
    centre_ = file.widened("centre", drivers);
    const auto loadings = file.floats("loadings", std::size_t(factors_ + drivers * drifting_) * V);
    const int mixed = factors_ + shared_ * drifting_;
    std::vector<float> last;
    if (!hidden_.zero()) last = file.floats("shape_network.last", std::size_t(hidden_.outputs()) * V);
    for (int l = 0; l < L; ++l) {
      const int first = layout_.bounds[l], size = layout_.sizes[l];
      loadings_.emplace_back(loadings.data(), mixed, V, first, size);
      leaning_.emplace_back(loadings.data() + std::size_t(mixed) * V, own * drifting_, V, first, size);
      if (!hidden_.zero()) last_.emplace_back(last.data(), hidden_.outputs(), V, first, size);
    }

    // The core: its own noise is mixed.
    core_size_ = file.integer("core_size");
    const auto core = file.integers("core", std::size_t(L) * core_size_);
    const std::vector<int> places = layout_.places();
    for (int v : core) core_.push_back(places.at(v));
    const auto mixing = file.floats("mixing", std::size_t(L) * core_size_ * core_size_);  // (L, from, to)
    const int M = core_size_;
    for (int l = 0; l < L; ++l) mixing_.emplace_back(mixing.data() + std::size_t(l) * M * M, M, M, 0, M);

    // What belongs to a vector of voxels lies side by side, in the order in which it is used.
    powers_ = 1 + drivers + drivers * (drivers + 1) / 2;
    const std::size_t n = std::size_t(V);
    std::vector<std::vector<float>> rows;
    const auto take = [&](const char* name, int count) {
      const auto found = file.floats(name, count * n);
      for (int i = 0; i < count; ++i) rows.emplace_back(found.begin() + i * n, found.begin() + (i + 1) * n);
    };
    take("power", powers_);
    take("standardise", 2);
    take("voxels.occupancy", F);  // its negative
    take("voxels.regressions", 2 * F);  // location and log scale of each feature, in turn
    take("voxels.shape", 15);
    numbers_ = static_cast<int>(rows.size());
    voxel_.resize(std::size_t(W) * numbers_);
    std::vector<float> wide(W);
    for (int i = 0; i < numbers_; ++i) {
      std::fill(wide.begin(), wide.end(), i == powers_ + 2 ? 80.f : 0.f);  // what is no voxel is never on
      layout_.spread(rows[i].data(), wide.data());
      for (int j = 0; j < W / LANES; ++j)
        std::copy(&wide[j * LANES], &wide[j * LANES] + LANES, &voxel_[(std::size_t(j) * numbers_ + i) * LANES]);
    }
  }

  void read_places(const WeightsFile& file) {
    const std::size_t V = voxels_;
    const auto layer = file.integers("places.layer", V);
    const auto centres = file.doubles("places.centres", 2 * V);
    const auto depths = file.doubles("places.depths", 2 * layout_.sizes.size());
    for (std::size_t v = 0; v < V; ++v) {
      const double *centre = &centres[2 * v], *depth = &depths.at(2 * layer[v]);
      places_.push_back({layer[v], centre[0], centre[1], (depth[0] + depth[1]) / 2});
    }
  }

  void read_conditions(const WeightsFile& file) {
    const auto names = file.lines("condition_names"), units = file.lines("condition_units");
    const auto labels = file.lines("condition_labels");
    const auto ranges = file.doubles("condition_ranges", 2 * names.size());
    for (std::size_t i = 0; i < names.size(); ++i) {
      Condition found{names[i], units.at(i), ranges[2 * i], ranges[2 * i + 1], {}};
      std::istringstream in(labels.at(i));
      std::string label;
      for (int number; in >> number >> label;) found.labels.emplace_back(label, number);
      conditions_.push_back(found);
    }
  }

  // Showers (n, V) of at most ROWS latents.
  void block(const float* latents, const float* conditions, int n, float* showers, Workspace& w) const {
    prepare(latents, conditions, n, w);
    correlate(latents, n, w);
    const int L = layout_.layers, W = layout_.width;
    for (int l = 0; l < L; ++l) normals(l, n, w);
    if (refinement_.active)
      for (int r = 0; r < n; ++r)
        refinement_(&w.normals[std::size_t(r) * W], &w.features[std::size_t(r) * L * features_.size], features_.size,
                    &w.drivers[std::size_t(r) * L * features_.drivers], w.of_refinement);
    for (int l = 0; l < L; ++l) voxels(l, n, showers, w);
  }

  // The networks, layer energies, and what voxels depend on.
  void prepare(const float* latents, const float* conditions, int n, Workspace& w) const {
    const std::size_t L = layout_.layers, D = energies_.size, Z = latent_size(), C = conditions_.size();
    const std::size_t S = of_energies_.size, T = of_voxels_.size, F = features_.size, J = features_.drivers;
    const std::size_t inputs = D + factors_ + S;
    w.scaled.resize(n * (S + T));
    w.energy_normals.resize(n * D);
    w.inputs.resize(n * inputs);
    for (int r = 0; r < n; ++r) {
      double* scaled = w.scaled.data() + r * (S + T);
      of_energies_(conditions + r * C, scaled);
      of_voxels_(conditions + r * C, scaled + S);
      std::copy(latents + r * Z, latents + r * Z + D, &w.energy_normals[r * D]);
      float* in = std::copy(latents + r * Z, latents + r * Z + D, w.inputs.data() + r * inputs);
      for (std::size_t i = 0; i < S; ++i) in[i] = static_cast<float>(scaled[i]);
    }
    if (!energy_network_.zero()) {
      const float* added = energy_network_(w.inputs.data(), inputs, n, w.network);
      for (int r = 0; r < n; ++r)
        for (std::size_t i = 0; i < D; ++i) w.energy_normals[r * D + i] += added[r * energy_network_.widest() + i];
    }
    w.energies.resize(n * L);
    w.given.resize(n * L);
    w.drivers.resize(n * L * J);
    w.features.resize(n * L * F);
    w.quadratic.resize(n * L * powers_);
    w.cells.resize(n);
    for (int r = 0; r < n; ++r) {
      const double *scaled = w.scaled.data() + r * (S + T), *plain = scaled + S;
      const double incident = energy_ < 0 ? 0.0 : conditions[r * C + energy_];
      double *energies = &w.energies[r * L], *drivers = &w.drivers[r * L * J];
      energies_.inverse(&w.energy_normals[r * D], scaled, incident, energies, w.of_energies);
      if (frame_) frame_.cells(conditions + r * C, features_.leading(plain), energies, w.cells[r]);
      features_(energies, plain, frame_, w.cells[r], &w.given[r * L], &w.features[r * L * F], drivers, w.columns);
      for (std::size_t l = 0; l < L; ++l)
        quadratic(drivers + l * J, w.given[r * L + l].together, w.quadratic.data() + (r * L + l) * powers_);
    }
    // The last hidden values of the network for shapes are kept until the voxels need them.
    if (hidden_.zero()) return;
    for (int r = 0; r < n; ++r) {
      float* in = w.inputs.data() + r * inputs;
      in = std::copy(&w.energy_normals[r * D], &w.energy_normals[r * D] + D, in);
      in = std::copy(latents + r * Z + D, latents + r * Z + D + factors_, in);
      for (std::size_t i = 0; i < S; ++i) in[i] = static_cast<float>(w.scaled[r * (S + T) + i]);
    }
    const float* hidden = hidden_(w.inputs.data(), inputs, n, w.network);
    const std::size_t H = hidden_.outputs();
    w.hidden.resize(n * H);
    w.shift.resize(std::size_t(n) * layout_.width);
    for (int r = 0; r < n; ++r)
      std::copy(hidden + r * hidden_.widest(), hidden + r * hidden_.widest() + H, w.hidden.data() + r * H);
  }

  // One, the drivers and their products of two, times what is left of correlations squared.
  void quadratic(const double* drivers, float together, float* out) const {
    const int J = features_.drivers;
    const double square = double(together) * together;
    *out++ = static_cast<float>(square);
    for (int a = 0; a < J; ++a) *out++ = static_cast<float>(square * (drivers[a] - centre_[a]));
    for (int a = 0; a < J; ++a) {
      const double first = square * (drivers[a] - centre_[a]);
      for (int b = a; b < J; ++b) *out++ = static_cast<float>(first * (drivers[b] - centre_[b]));
    }
  }

  // Factors with what they are multiplied by, and the voxels' own noise with its correlations.
  void correlate(const float* latents, int n, Workspace& w) const {
    const std::size_t L = layout_.layers, D = energies_.size, Z = latent_size(), J = features_.drivers;
    const std::size_t R = factors_ + std::size_t(shared_) * drifting_, row = noise_.row(), M = core_size_;
    const std::size_t padded = vectors(core_size_) * LANES;
    w.mixed.resize(n * R);
    w.own.resize(ROWS * row);
    w.other.resize(row + L * M + padded);
    w.kept.resize(layout_.width);
    w.apart.resize(std::size_t(ROWS) * layout_.width);
    for (int r = 0; r < n; ++r) {
      const float* factors = latents + r * Z + D;
      float* mixed = std::copy(factors, factors + factors_, w.mixed.data() + r * R);
      for (int j = 0; j < shared_; ++j) {
        const auto driver = static_cast<float>(w.drivers[r * L * J + j] - centre_[j]);
        for (int k = 0; k < drifting_; ++k) *mixed++ = driver * factors[k];
      }
      float* own = w.own.data() + r * row;
      layout_.spread(factors + factors_, own + LANES);
      for (std::size_t l = 0; l < L; ++l)
        for (int i = layout_.place(l, layout_.sizes[l]); i < layout_.starts[l + 1] * LANES; ++i) own[LANES + i] = 0;
      float* core = w.other.data() + row;
      for (std::size_t i = 0; i < L * M; ++i) core[i] = own[LANES + core_[i]];
      const Given* given = &w.given[r * L];
      noise_(own, given, w.other.data(), w.kept.data(), w.apart.data() + std::size_t(r) * layout_.width);
      float* now = core + L * M;
      for (std::size_t l = 0; l < L; ++l) {
        if (given[l].faint > 0.5f) continue;
        mixing_[l].multiply(core + l * M, M, 1, now, padded);
        for (std::size_t i = 0; i < M; ++i) own[LANES + core_[l * M + i]] = now[i];
      }
    }
  }

  // Voxel normals of a layer, before refinement.
  void normals(int l, int n, Workspace& w) const {
    const std::size_t R = loadings_[l].inputs(), W = layout_.width, L = layout_.layers, J = features_.drivers;
    const int first = layout_.starts[l] * LANES, K = leaning_[l].inputs();
    w.normals.resize(ROWS * W);
    loadings_[l].multiply(w.mixed.data(), R, n, w.normals.data() + first, W);
    if (K) {
      w.leaning.resize(std::size_t(n) * K);
      for (int r = 0; r < n; ++r)
        for (std::size_t j = shared_; j < J; ++j)
          for (int k = 0; k < drifting_; ++k)
            w.leaning[std::size_t(r) * K + (j - shared_) * drifting_ + k] =
                static_cast<float>(w.drivers[(r * L + l) * J + j] - centre_[j]) * w.mixed[r * R + k];
      leaning_[l].multiply(w.leaning.data(), K, n, w.normals.data() + first, W, true);
    }
    float* shift = nullptr;
    if (!hidden_.zero()) {
      shift = w.shift.data();
      last_[l].multiply(w.hidden.data(), hidden_.outputs(), n, shift + first, W);
    }
    int r = 0;
    for (; r + TOGETHER <= n; r += TOGETHER) standardised<TOGETHER>(l, r, shift, w);
    for (; r < n; ++r) standardised<1>(l, r, shift, w);
  }

  // Common factors and own noise together have a variance of 1; what a network added is standardised, too.
  template <int M>
  void standardised(int l, int r, const float* shift, Workspace& w) const {
    const std::size_t W = layout_.width, L = layout_.layers;
    for (int j = layout_.starts[l]; j < layout_.starts[l + 1]; ++j) {
      const float* number = voxel_.data() + std::size_t(j) * numbers_ * LANES;
      Vec power[M] = {};
      for (int p = 0; p < powers_; ++p, number += LANES) {
        const Vec weight = load(number);
        CALOGEN_UNROLL
        for (int i = 0; i < M; ++i) power[i] += w.quadratic[((r + i) * L + l) * powers_ + p] * weight;
      }
      const Vec scale = load(number), offset = load(number + LANES);
      CALOGEN_UNROLL
      for (int i = 0; i < M; ++i) {
        float* out = w.normals.data() + (r + i) * W + j * LANES;
        const Vec own = load(w.own.data() + (r + i) * noise_.row() + LANES + j * LANES);
        const Vec alone = own * root(max(1.f - power[i], all(LEAST_NOISE)));
        const Vec total = inverse_root(max(power[i] + LEAST_NOISE, all(1.f)));
        const Vec found = (load(out) * w.given[(r + i) * L + l].together + alone) * total;
        store(out, found * scale + (shift ? load(shift + (r + i) * W + j * LANES) + offset : offset));
      }
    }
  }

  // The voxels of a layer in MeV (VoxelShares.inverse), where they belong in the showers (n, V).
  void voxels(int l, int n, float* showers, Workspace& w) const {
    const std::size_t L = layout_.layers, wide = (layout_.starts[l + 1] - layout_.starts[l]) * LANES;
    w.excess.resize(ROWS * wide);
    w.shares.resize(ROWS * wide);
    int r = 0;
    for (; r + TOGETHER <= n; r += TOGETHER) excess<TOGETHER>(l, r, w);
    for (; r < n; ++r) excess<1>(l, r, w);
    for (r = 0; r < n; ++r) {
      float* found = w.excess.data() + r * wide;
      const float shift = counts_.shift(found, layout_.sizes[l], w.given[r * L + l].log_energy, l, w.foremost);
      for (int i = 0; shift != 0 && i < layout_.sizes[l]; ++i) found[i] -= shift;
    }
    for (r = 0; r + TOGETHER <= n; r += TOGETHER) shares<TOGETHER>(l, r, w);
    for (; r < n; ++r) shares<1>(l, r, w);
    int begin = layout_.bounds[l];
    if (frame_) {
      begin = 0;
      for (int i = 0; i < l; ++i) begin += frame_.cells_of(i);
    }
    for (r = 0; r < n; ++r) {
      float *share = w.shares.data() + r * wide, *out = showers + std::size_t(r) * voxels_ + begin;
      share_out(l, w.given[r * L + l].energy, w.excess.data() + r * wide, share);
      const int cells = frame_ ? frame_.cells_of(l) : layout_.sizes[l];
      if (frame_)
        frame_.from_frame(share, w.cells[r], l, out);
      else
        std::copy(share, share + cells, out);
      if (threshold_ > 0)
        for (int i = 0; i < cells; ++i) out[i] = out[i] < threshold_ ? 0.f : out[i];
    }
  }

  // How far the upper tail S of a voxel's normal lies below the probability p of being on: log(p / S). With
  // p = 1 / (1 + exp(-logit)) and S = erfc(normal / root 2) / 2, that is log 2 - log((1 + exp(-logit)) erfc).
  template <int M>
  void excess(int l, int r, Workspace& w) const {
    const std::size_t W = layout_.width, L = layout_.layers, F = features_.size;
    const std::size_t wide = (layout_.starts[l + 1] - layout_.starts[l]) * LANES;
    for (int j = layout_.starts[l]; j < layout_.starts[l + 1]; ++j) {
      const float* number = voxel_.data() + (std::size_t(j) * numbers_ + powers_ + 2) * LANES;
      Vec logit[M] = {};
      for (std::size_t f = 0; f < F; ++f, number += LANES) {
        const Vec weight = load(number);
        CALOGEN_UNROLL
        for (int i = 0; i < M; ++i) logit[i] += w.features[((r + i) * L + l) * F + f] * weight;
      }
      CALOGEN_UNROLL
      for (int i = 0; i < M; ++i) {
        const Vec normal = clamp(load(w.normals.data() + (r + i) * W + j * LANES), -6.f, 6.f);
        const Vec found = 0.693147181f - logarithm((1.f + exponential(logit[i])) * erfc(0.707106781f * normal));
        store(w.excess.data() + (r + i) * wide + (j - layout_.starts[l]) * LANES, found);
      }
    }
  }

  // Shares of voxels that are on, not yet normalised: exp(location + exp(log scale) (Q(excess) + apart)).
  template <int M>
  void shares(int l, int r, Workspace& w) const {
    const std::size_t W = layout_.width, L = layout_.layers, F = features_.size;
    const std::size_t wide = (layout_.starts[l + 1] - layout_.starts[l]) * LANES;
    for (int j = layout_.starts[l]; j < layout_.starts[l + 1]; ++j) {
      const float* number = voxel_.data() + (std::size_t(j) * numbers_ + powers_ + 2 + F) * LANES;
      Vec location[M] = {}, log_scale[M] = {};
      for (std::size_t f = 0; f < F; ++f, number += 2 * LANES) {
        const Vec first = load(number), second = load(number + LANES);
        CALOGEN_UNROLL
        for (int i = 0; i < M; ++i) {
          const float feature = w.features[((r + i) * L + l) * F + f];
          location[i] += feature * first;
          log_scale[i] += feature * second;
        }
      }
      CALOGEN_UNROLL
      for (int i = 0; i < M; ++i) {
        const Given& given = w.given[(r + i) * L + l];
        const auto shape = [&](int k) {
          const float* at = number + (3 * k + given.station) * LANES;
          return given.near[0] * load(at) + given.near[1] * load(at + LANES);
        };
        const std::size_t place = (r + i) * wide + (j - layout_.starts[l]) * LANES;
        const Vec found = load(w.excess.data() + place), above = max(found, all(1e-4f)), log = logarithm(above);
        Vec standard = shape(0) + shape(1) * log + shape(2) * root(above);
        standard += shape(3) * min(log + 2.5f, Vec{}) + shape(4) * min(log + 0.7f, Vec{});
        if (noise_.follows) standard += load(w.apart.data() + (r + i) * W + j * LANES);
        const Vec log_share = clamp(location[i] + exponential(log_scale[i]) * standard, -40.f, 10.f);
        store(w.shares.data() + place, select(found > 0.f, exponential(log_share), Vec{}));
      }
    }
  }

  // Share a layer's energy out, in place of the shares: what is over the thresholds of voxels that are on.
  void share_out(int l, double energy, const float* excess, float* share) const {
    const int size = layout_.sizes[l], wide = vectors(size) * LANES;
    Vec sums = {}, hits = {};
    for (int i = 0; i < wide; i += LANES) {
      const Vec value = load(share + i);
      sums += value;
      hits += select(value > 0.f, all(1.f), Vec{});
    }
    const float total = sum(sums), least = threshold_ * sum(hits), given = static_cast<float>(energy);
    // Where no voxel is on, or more than the energy suffices for, all of it goes into the one that came nearest.
    const bool alone = !(total > 0 && given > least);
    if (alone) {
      std::fill(share, share + wide, 0.f);
      share[std::max_element(excess, excess + size) - excess] = given;
    }
    const float factor = alone ? 1.f : (given - least) / std::max(total, 1e-30f), base = alone ? 0.f : threshold_;
    // Voxels next to the electron's mass are moved onto it: annihilation photons that stay in one voxel.
    const auto mass = static_cast<float>(ELECTRON / unit_in_mev_), half = static_cast<float>(line_[l] / unit_in_mev_);
    const auto reach = static_cast<float>(LINE_REACH / unit_in_mev_);
    const float stretch = reach / (reach - half);
    Vec after = {};
    for (int i = 0; i < wide; i += LANES) {
      Vec value = load(share + i);
      value = value * factor + select(value > 0.f, all(base), Vec{});
      if (half > 0) {
        const Vec distance = value - mass, length = max(distance, -distance);
        const Vec shrunk = max(length - half, Vec{}) * stretch;
        value = select(length < reach, mass + select(distance < 0.f, -shrunk, shrunk), value);
      }
      store(share + i, value);
      after += value;
    }
    const float again = given / std::max(sum(after), 1e-30f);
    for (int i = 0; i < wide; i += LANES) store(share + i, load(share + i) * again);
  }

  std::string name_, digest_, unit_;
  std::vector<Condition> conditions_;
  std::vector<Place> places_;
  Layout layout_;
  Scaling of_energies_, of_voxels_;
  LayerEnergies energies_;
  ShowerFrame frame_;
  VoxelFeatures features_;
  SharedNoise noise_;
  HitCounts counts_;
  ShapeRefinement refinement_;
  Network energy_network_, hidden_;
  std::vector<Matrix> loadings_, leaning_, last_, mixing_;
  Buffer voxel_;
  std::vector<float> table_, line_;
  std::vector<double> centre_;
  std::vector<int> core_;
  int voxels_ = 0, factors_ = 0, drifting_ = 0, shared_ = 0, core_size_ = 0, energy_ = -1, powers_ = 0, numbers_ = 0;
  float threshold_ = 0;
  double unit_in_mev_ = 1;
};

}  // namespace of the vectors
}  // namespace calogen

#undef CALOGEN_UNROLL

#endif
