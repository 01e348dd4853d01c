// The ranks over whose pictures batch norms take their statistics together.
#pragma once

#include <vector>

#include "comm/comm.h"

namespace facetrain {

struct JoinedRanks {
  Comm* comm;
  // By rank: its share of the pictures of all. They add up to 1.
  std::vector<double> shares;

  double own_share() const { return shares[static_cast<size_t>(comm->rank())]; }
};

}  // namespace facetrain
