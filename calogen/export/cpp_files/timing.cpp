// Microseconds of CPU time that a shower takes in batches of a size, noise included: the best of several rounds.
//
//     timing WEIGHTS BATCH SECONDS
#include <cstdlib>
#include <ctime>
#include <iostream>

#include "calogen_shower.hpp"

int main(int, char** words) try {
  const calogen::Surrogate surrogate(words[1]);
  const std::size_t batch = std::strtoul(words[2], nullptr, 10), V = surrogate.voxels();
  const double seconds = std::strtod(words[3], nullptr);
  std::vector<float> conditions, showers(batch * V);
  for (std::size_t i = 0; i < batch; ++i)
    for (const calogen::Condition& c : surrogate.conditions()) {
      const double part = static_cast<double>(i * 7919 % 1000) / 1000;
      conditions.push_back(static_cast<float>(c.labels.empty() ? c.low + (c.high - c.low) * part
                                                               : c.labels[i % c.labels.size()].second));
    }
  calogen::Workspace work;
  const std::size_t repeats = batch < 1000 ? 1000 / batch : 1;  // the clock ticks in microseconds
  double best = 1e30;
  std::uint64_t index = 0;
  for (const std::clock_t start = std::clock(); best == 1e30 || std::clock() - start < seconds * CLOCKS_PER_SEC;) {
    const std::clock_t begun = std::clock();
    for (std::size_t k = 0; k < repeats; ++k, index += batch)
      surrogate.sample(0, index, conditions.data(), batch, showers.data(), work);
    const double taken = static_cast<double>(std::clock() - begun) / CLOCKS_PER_SEC;
    best = std::min(best, 1e6 * taken / static_cast<double>(repeats * batch));
  }
  std::cout << best << "\n";
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 2;
}
