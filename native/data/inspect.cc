#include "data/inspect.h"

#include <pthread.h>

#include <algorithm>
#include <exception>
#include <iterator>
#include <limits>
#include <map>
#include <mutex>
#include <thread>

#include "data/picture.h"
#include "error.h"

namespace facetrain {

Inspection inspect(const Dataset& dataset, int64_t decode, int threads, size_t listed, std::atomic<int64_t>& done,
                   const std::atomic<bool>& cancelled) {
  constexpr int64_t kBlock = 64;  // pictures that a thread claims at a time
  std::atomic<int64_t> next{0};
  std::mutex mutex;  // guards error, result, bad and seen
  std::exception_ptr error;
  std::atomic<int64_t> failed{dataset.size()};  // the picture of `error`; later pictures need not be checked
  Inspection result{0, std::numeric_limits<int64_t>::max(), -1, 0, {}};
  std::map<int64_t, UnusablePicture> bad;  // the first `listed` ones
  std::vector<bool> seen(static_cast<size_t>(dataset.identities()));

  const auto check_blocks = [&] {
    std::vector<uint8_t> pixels(size_t{3} * dataset.height() * dataset.width());
    std::vector<int64_t> labels;
    for (;;) {
      const int64_t begin = next.fetch_add(kBlock), end = std::min(begin + kBlock, dataset.size());
      if (begin >= failed) return;
      for (int64_t picture = begin; picture < end; ++picture) {
        if (decode >= dataset.size() || dataset.labels_are_read()) dataset.will_need(picture);
      }
      labels.clear();
      for (int64_t picture = begin; picture < end && !cancelled; ++picture, ++done) {
        try {
          labels.push_back(dataset.label(picture));
          if (decode > 0 && (decode >= dataset.size() || picture * decode % dataset.size() < decode)) {
            decode_picture(dataset.encoded(picture), dataset.height(), dataset.width(), false, pixels.data(),
                           "InvalidDataset", dataset.name(picture));
          }
        } catch (const BadPicture& problem) {
          std::lock_guard lock(mutex);
          ++result.bad;
          bad.emplace(picture, UnusablePicture{picture, problem.subject, problem.found});
          if (bad.size() > listed) bad.erase(std::prev(bad.end()));
        } catch (...) {
          std::lock_guard lock(mutex);
          if (picture < failed) {
            failed = picture;
            error = std::current_exception();
          }
          return;
        }
      }
      if (cancelled) return;
      std::lock_guard lock(mutex);
      for (const int64_t label : labels) {
        seen[static_cast<size_t>(label)] = true;
        result.label_min = std::min(result.label_min, label);
        result.label_max = std::max(result.label_max, label);
      }
    }
  };

  std::vector<std::thread> pool;
  for (int i = 0; i < threads; ++i) {
    pool.emplace_back(check_blocks);
    pthread_setname_np(pool.back().native_handle(), ("inspect/" + std::to_string(i)).c_str());
  }
  for (auto& thread : pool) thread.join();
  if (cancelled) throw Cancelled();
  if (error) std::rethrow_exception(error);
  for (auto& [picture, unusable] : bad) result.bad_pictures.push_back(std::move(unusable));
  if (result.label_max < 0) result.label_min = 0;  // no record was intact
  result.identities_seen = std::count(seen.begin(), seen.end(), true);
  return result;
}

}  // namespace facetrain
