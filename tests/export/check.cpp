// What the tests ask of the header: programs that read a table of requests and write what comes out.
//
//     check noise WEIGHTS SEED INDEX N OUT              latents (n, Z)
//     check decode WEIGHTS LATENTS CONDITIONS N OUT     showers (n, V) of given latents, in batches of several sizes
//     check sample WEIGHTS SEED CONDITIONS N OUT        showers (n, V), by two threads
//     check places WEIGHTS OUT                          layer, x, y, z of the voxels (V, 4)
#include <future>
#include <iostream>

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
    for (std::size_t i = 0; i < n * V; ++i)
      if (parts[i] != whole[i] && !(std::isnan(parts[i]) && std::isnan(whole[i])))
        throw std::logic_error("showers depend on the batch");
    write(word.at(6), whole);
  } else if (what == "sample") {
    const std::vector<float> conditions = read(word.at(4));
    const std::size_t n = std::stoul(word.at(5)), half = n / 2;
    const std::uint64_t seed = std::stoull(word.at(3));
    std::vector<float> found(n * V);
    const auto other = [&] {
      calogen::Workspace mine;
      surrogate.sample(seed, half, conditions.data() + half * C, n - half, found.data() + half * V, mine);
    };
    std::future<void> second = std::async(std::launch::async, other);
    surrogate.sample(seed, 0, conditions.data(), half, found.data(), work);
    second.get();
    write(word.at(6), found);
  } else {
    std::vector<float> found;
    for (const calogen::Place& place : surrogate.places())
      for (double number : {double(place.layer), place.x, place.y, place.z}) found.push_back(static_cast<float>(number));
    write(word.at(3), found);
  }
  return 0;
} catch (const calogen::Error& error) {
  std::cerr << error.what() << "\n";
  return 2;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
