// For tests: the options of ranks on this machine.
#pragma once

#include "comm/comm.h"

namespace facetrain {

inline RendezvousOptions loopback(int rank, int size, int port, const std::string& master_addr = "127.0.0.1") {
  return {.rank = rank,
          .size = size,
          .gang = "test",
          .master_addr = master_addr,
          .master_port = port,
          .bind_addr = "",
          .rendezvous_timeout = std::chrono::seconds(60),
          .collective_timeout = std::chrono::seconds(120)};
}

}  // namespace facetrain
