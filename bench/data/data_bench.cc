// Measures the loader: decoded pictures per second and core, with mirroring and shifts, for JPEG and PNG. Beside it
// libjpeg-turbo and libpng alone, on the same bytes in memory, without checks: what is left of a core for the rest.
// Usage: `npm run bench -- data --help`. Prints a table, and the same numbers as one line of JSON.
//
// The rows take turns, and the medians of the rounds are shown. Time is that of the processor, which other programs on
// the machine affect less. With --reference, OpenCV and Pillow in Python decode the same pictures in the same turns
// (reference.py).
#include <sys/resource.h>

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "../common/arguments.h"
#include "data/loader.h"
#include "data/picture.h"
#include "test/pictures.h"

using namespace facetrain;
using Bytes = std::vector<uint8_t>;

namespace {

// Processor time of this process, in seconds.
double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// The pictures of another dataset, in memory, as PNG.
class PngDataset : public Dataset {
 public:
  explicit PngDataset(const Dataset& from) : height_(from.height()), width_(from.width()) {
    Bytes pixels(size_t{3} * static_cast<size_t>(height_ * width_));
    for (int64_t picture = 0; picture < std::min<int64_t>(from.size(), 1000); ++picture) {
      decode_picture(from.encoded(picture), height_, width_, false, pixels.data(), "InvalidDataset", "");
      encoded_.push_back(test::encode_png(pixels, height_, width_));
    }
  }
  int64_t size() const override { return static_cast<int64_t>(encoded_.size()); }
  int64_t identities() const override { return 1; }
  int height() const override { return height_; }
  int width() const override { return width_; }
  int64_t label(int64_t) const override { return 0; }
  Bytes encoded(int64_t picture) const override { return encoded_[static_cast<size_t>(picture)]; }
  void will_need(int64_t) const override {}
  std::string name(int64_t picture) const override { return "picture " + std::to_string(picture); }
  int64_t bytes() const override {
    int64_t sum = 0;
    for (const Bytes& picture : encoded_) sum += static_cast<int64_t>(picture.size());
    return sum;
  }

 private:
  const int height_, width_;
  std::vector<Bytes> encoded_;
};

// Each returns how many pictures it has decoded.
using Work = std::function<int64_t()>;

Work loader_work(std::shared_ptr<const Dataset> dataset, int threads) {
  const int64_t batch = std::min<int64_t>(dataset->size(), 64);
  const std::shared_ptr<Loader> loader = make_loader(std::move(dataset), {.global_batch = batch,
                                                                          .rank = 0,
                                                                          .size = 1,
                                                                          .seed = 1,
                                                                          .flip = true,
                                                                          .shift = 4,
                                                                          .bgr = false,
                                                                          .threads = threads,
                                                                          .max_bad = 0});
  return [loader, batch] {
    loader->next();
    return batch;
  };
}

// libjpeg-turbo alone, as its example.c uses it, with one decompressor for all pictures.
Work libjpeg_work(const std::shared_ptr<const std::vector<Bytes>>& pictures) {
  return [pictures] {
    jpeg_decompress_struct jpeg{};
    jpeg_error_mgr errors{};
    jpeg.err = jpeg_std_error(&errors);
    jpeg_create_decompress(&jpeg);
    Bytes out;
    for (const Bytes& picture : *pictures) {
      jpeg_mem_src(&jpeg, picture.data(), picture.size());
      jpeg_read_header(&jpeg, TRUE);
      jpeg.out_color_space = JCS_EXT_RGB;
      jpeg_start_decompress(&jpeg);
      const size_t row = size_t{3} * jpeg.output_width;
      out.resize(row * jpeg.output_height);
      while (jpeg.output_scanline < jpeg.output_height) {
        JSAMPROW rows[8];
        for (JDIMENSION i = 0; i < 8; ++i)
          rows[i] = out.data() + row * std::min(jpeg.output_scanline + i, jpeg.output_height - 1);
        jpeg_read_scanlines(&jpeg, rows, 8);
      }
      jpeg_finish_decompress(&jpeg);
    }
    jpeg_destroy_decompress(&jpeg);
    return static_cast<int64_t>(pictures->size());
  };
}

Work libpng_work(const std::shared_ptr<const std::vector<Bytes>>& pictures) {
  return [pictures] {
    Bytes out;
    for (const Bytes& picture : *pictures) {
      png_image image{};
      image.version = PNG_IMAGE_VERSION;
      png_image_begin_read_from_memory(&image, picture.data(), picture.size());
      image.format = PNG_FORMAT_RGB;
      out.resize(PNG_IMAGE_SIZE(image));
      png_image_finish_read(&image, nullptr, out.data(), 0, nullptr);
    }
    return static_cast<int64_t>(pictures->size());
  };
}

std::shared_ptr<const std::vector<Bytes>> in_memory(const Dataset& dataset) {
  auto pictures = std::make_shared<std::vector<Bytes>>();
  for (int64_t i = 0; i < std::min<int64_t>(dataset.size(), 1000); ++i) pictures->push_back(dataset.encoded(i));
  return pictures;
}

double pictures_per_cpu_second(const Work& work, double seconds) {
  work();  // the caches
  const double start = cpu_seconds();
  int64_t pictures = 0;
  double spent = 0;
  do {
    pictures += work();
    spent = cpu_seconds() - start;
  } while (spent < seconds);
  return static_cast<double>(pictures) / spent;
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// What reference.py prints, by library.
std::map<std::string, double> reference_speeds(const std::string& python, const std::string& folder, double seconds) {
  const auto quoted = [](const std::string& text) { return "'" + text + "'"; };
  const std::string command =
      quoted(python) + " " + quoted(DATA_REFERENCE) + " " + quoted(folder) + " " + std::to_string(seconds);
  std::map<std::string, double> speeds;
  FILE* const output = popen(command.c_str(), "r");
  if (output == nullptr) return speeds;
  char name[64];
  double speed = 0;
  while (std::fscanf(output, " %63[^\t]\t%lf", name, &speed) == 2) speeds[name] = speed;
  pclose(output);
  return speeds;
}

}  // namespace

int main(int argc, char** argv) {
  const bench::Arguments arguments(argc, argv, "Usage: npm run bench -- data [OPTION...]\n",
                                   {{"folder", "FOLDER", "a dataset of any layout [examples/lfw-small/data]"},
                                    {"seconds", "S", "of processor time for a row and round [1]"},
                                    {"rounds", "N", "of which the medians are shown [5]"},
                                    {"only", "ROW", "one row, by its name in the JSON"},
                                    {"reference", "PYTHON", "a Python with OpenCV or Pillow"}});
  const std::string folder = arguments.text("folder", DATA_EXAMPLE), python = arguments.text("reference", "");
  const double seconds = arguments.number("seconds", 1);
  const std::string only = arguments.text("only", "");
  const std::shared_ptr<const Dataset> own = open_dataset(folder);
  // Takes seconds to encode.
  const auto png =
      only.empty() || only.find("png") != std::string::npos ? std::make_shared<const PngDataset>(*own) : nullptr;
  struct Row {
    std::string key, name;
    std::function<Work()> work;
    std::vector<double> measured = {};
  };
  std::vector<Row> rows{
      {"loader", "loader, 1 thread", [&] { return loader_work(own, 1); }},
      {"loader2", "loader, 2 threads", [&] { return loader_work(own, 2); }},
      {"libjpeg", "libjpeg-turbo alone", [&] { return libjpeg_work(in_memory(*own)); }},
      {"png", "the same as PNG: loader, 1 thread", [&] { return loader_work(png, 1); }},
      {"png2", "the same as PNG: loader, 2 threads", [&] { return loader_work(png, 2); }},
      {"libpng", "the same as PNG: libpng alone", [&] { return libpng_work(in_memory(*png)); }},
  };
  const auto first = own->encoded(0);
  const bool are_jpeg = first.size() > 2 && first[0] == 0xff && first[1] == 0xd8;
  std::erase_if(
      rows, [&](const Row& row) { return (!are_jpeg && row.key == "libjpeg") || (!only.empty() && row.key != only); });
  std::map<std::string, std::vector<double>> references;  // by library
  for (int64_t round = 0; round < arguments.integer("rounds", 5); ++round) {
    for (Row& row : rows) row.measured.push_back(pictures_per_cpu_second(row.work(), seconds));
    if (python.empty()) continue;
    for (const auto& [name, speed] : reference_speeds(python, folder, seconds)) references[name].push_back(speed);
  }
  const auto mean_bytes = [](const Dataset& dataset) {
    return static_cast<double>(dataset.bytes()) / static_cast<double>(dataset.size());
  };
  std::printf("%s: %lld pictures of %d x %d, %.0f bytes each", folder.c_str(), static_cast<long long>(own->size()),
              own->height(), own->width(), mean_bytes(*own));
  if (png) std::printf("; as PNG %.0f", mean_bytes(*png));
  std::printf("\n");
  std::printf("%-40s %s\n", "", "pictures/s and core");
  std::string json;
  const auto print = [&](const std::string& key, const std::string& name, double speed) {
    std::printf("%-40s %12.0f\n", name.c_str(), speed);
    json += ", \"" + key + "\": " + std::to_string(static_cast<int64_t>(speed));
  };
  for (const Row& row : rows) print(row.key, row.name, median(row.measured));
  for (const auto& [name, speeds] : references) print(name, name + " in Python, decoding alone", median(speeds));
  std::printf("{\"benchmark\": \"data\"%s}\n", json.c_str());
  return 0;
}
