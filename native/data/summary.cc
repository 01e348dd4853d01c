#include "data/summary.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <mutex>
#include <span>
#include <thread>

#include "error.h"
#include "random.h"

namespace facetrain {
namespace {

constexpr size_t kExamples = 20;

// 64 bits: among 10^8 different pictures, two have one hash with a probability of 0.03 %.
uint64_t hash_of(std::span<const uint8_t> bytes) {
  uint64_t hash = bytes.size();
  for (size_t at = 0; at < bytes.size(); at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, std::min<size_t>(8, bytes.size() - at));
    hash = splitmix64(hash ^ word);
  }
  return hash;
}

struct Read {
  uint64_t hash;
  uint32_t picture, label;  // the trainers' limits are below 2^32
};

void count_pictures(const std::vector<Read>& pictures, Summary& summary) {
  std::vector<uint32_t> labels;
  for (const Read& read : pictures) labels.push_back(read.label);
  std::sort(labels.begin(), labels.end());
  std::vector<int64_t> counts;
  for (size_t begin = 0, end = 0; begin < labels.size(); begin = end) {
    while (end < labels.size() && labels[end] == labels[begin]) ++end;
    counts.push_back(static_cast<int64_t>(end - begin));
  }
  if (counts.empty()) return;
  std::sort(counts.begin(), counts.end());
  summary.identities = static_cast<int64_t>(counts.size());
  summary.least = counts.front();
  summary.median = counts[counts.size() / 2];
  summary.most = counts.back();
  summary.with_one = std::count(counts.begin(), counts.end(), 1);
}

void find_duplicates(const Dataset& dataset, std::vector<Read>& pictures, Summary& summary) {
  std::sort(pictures.begin(), pictures.end(),
            [](const Read& a, const Read& b) { return a.hash != b.hash ? a.hash < b.hash : a.picture < b.picture; });
  // By picture, so that the examples do not depend on the hashes.
  std::vector<std::pair<uint32_t, uint32_t>> within, across;
  for (size_t begin = 0, end = 0; begin < pictures.size(); begin = end) {
    while (end < pictures.size() && pictures[end].hash == pictures[begin].hash) ++end;
    std::vector<const Read*> firsts;  // of each identity in the group
    for (size_t i = begin; i < end; ++i) {
      const Read& read = pictures[i];
      const auto same =
          std::find_if(firsts.begin(), firsts.end(), [&](const Read* f) { return f->label == read.label; });
      if (same != firsts.end()) {
        within.emplace_back(read.picture, (*same)->picture);
      } else {
        if (i > begin) across.emplace_back(read.picture, pictures[begin].picture);
        firsts.push_back(&read);
      }
    }
  }
  const auto fill = [&](std::vector<std::pair<uint32_t, uint32_t>>& found, Summary::Duplicates& duplicates) {
    std::sort(found.begin(), found.end());
    duplicates.count = static_cast<int64_t>(found.size());
    for (size_t i = 0; i < std::min(found.size(), kExamples); ++i) {
      duplicates.examples.emplace_back(dataset.name(found[i].second), dataset.name(found[i].first));
    }
  };
  fill(within, summary.within);
  fill(across, summary.across);
}

}  // namespace

Summary summarize(const Dataset& dataset, int threads, std::atomic<int64_t>& done, const std::atomic<bool>& cancelled) {
  constexpr int64_t kBlock = 64;  // pictures that a thread claims at a time
  std::atomic<int64_t> next{0};
  std::mutex mutex;  // guards the two below
  std::vector<Read> pictures;
  std::exception_ptr failure;
  const auto read_blocks = [&] {
    std::vector<Read> mine;
    try {
      for (;;) {
        const int64_t begin = next.fetch_add(kBlock), end = std::min(begin + kBlock, dataset.size());
        if (begin >= end || cancelled) break;
        for (int64_t picture = begin; picture < end; ++picture) dataset.will_need(picture);
        for (int64_t picture = begin; picture < end && !cancelled; ++picture, ++done) {
          try {
            mine.push_back({hash_of(dataset.encoded(picture)), static_cast<uint32_t>(picture),
                            static_cast<uint32_t>(dataset.label(picture))});
          } catch (const Error& error) {
            if (error.code != "InvalidDataset") throw;
          }
        }
      }
    } catch (...) {
      std::lock_guard lock(mutex);
      failure = std::current_exception();
    }
    std::lock_guard lock(mutex);
    pictures.insert(pictures.end(), mine.begin(), mine.end());
  };
  std::vector<std::thread> pool;
  for (int i = 0; i < threads; ++i) pool.emplace_back(read_blocks);
  for (auto& thread : pool) thread.join();
  if (cancelled) throw Cancelled();
  if (failure) std::rethrow_exception(failure);
  Summary summary;
  count_pictures(pictures, summary);
  find_duplicates(dataset, pictures, summary);
  return summary;
}

}  // namespace facetrain
