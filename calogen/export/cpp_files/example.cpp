// Showers of a calogen surrogate, one a line: the values of its conditions, then its voxels in MeV.
//
//     g++ -std=c++17 -O2 -march=native example.cpp -o example
//     ./example                                      ten showers, over the whole range that was trained
//     ./example calogen_shower.weights 7 20000 50e3  seed 7, two showers of 20 and 50 GeV
//     ./example calogen_shower.weights 7 20e3,0,0,5,30    several conditions, in the order that the first line says
//
// In Python the same showers are calogen.Surrogate.load(...).sample({"incident_energy": [20e3, 50e3]}, seed=7).

#include <cstdlib>
#include <iostream>
#include <sstream>

#include "calogen_shower.hpp"

namespace {

std::string beside_this_file(const std::string& name) {
  const std::string here = __FILE__;
  const std::size_t slash = here.find_last_of("/\\");
  return slash == std::string::npos ? name : here.substr(0, slash + 1) + name;
}

std::vector<float> over_the_range(const std::vector<calogen::Condition>& conditions, int showers) {
  std::vector<float> found;
  for (int i = 0; i < showers; ++i)
    for (const calogen::Condition& c : conditions)
      found.push_back(static_cast<float>(c.labels.empty() ? c.low + (c.high - c.low) * (i + 0.5) / showers
                                                          : c.labels[i % c.labels.size()].second));
  return found;
}

std::vector<float> given(int count, char** words) {
  std::vector<float> found;
  for (int i = 0; i < count; ++i) {
    std::istringstream in(words[i]);
    for (std::string number; std::getline(in, number, ',');) {
      char* end = nullptr;
      found.push_back(std::strtof(number.c_str(), &end));
      if (number.empty() || *end) throw calogen::Error("expected a number, found '" + number + "'");
    }
  }
  return found;
}

}  // namespace

int main(int count, char** words) try {
  const calogen::Surrogate surrogate(count > 1 ? words[1] : beside_this_file("calogen_shower.weights"));
  const unsigned long long seed = count > 2 ? std::strtoull(words[2], nullptr, 10) : 0;
  const std::size_t C = surrogate.conditions().size(), V = surrogate.voxels();
  const std::vector<float> conditions =
      count > 3 ? given(count - 3, words + 3) : over_the_range(surrogate.conditions(), 10);
  if (C && conditions.size() % C) throw calogen::Error("every shower takes " + std::to_string(C) + " conditions");

  // The six lines that matter: a surrogate, space for a thread, and a shower.
  const std::size_t n = C ? conditions.size() / C : 10;
  calogen::Workspace work;
  std::vector<float> showers(n * V);
  surrogate.sample(seed, 0, conditions.data(), n, showers.data(), work);

  std::cout << "# " << surrogate.name() << ", seed " << seed << ":";
  for (const calogen::Condition& c : surrogate.conditions()) std::cout << " " << c.name << " [" << c.unit << "],";
  std::cout << " then " << V << " voxels [" << surrogate.unit() << "]\n";
  std::cout.precision(9);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t c = 0; c < C; ++c) std::cout << conditions[i * C + c] << " ";
    for (std::size_t v = 0; v < V; ++v) std::cout << showers[i * V + v] << (v + 1 < V ? " " : "\n");
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 2;
}
