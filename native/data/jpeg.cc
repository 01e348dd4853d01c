// Decodes JPEG with libturbojpeg.
#include <turbojpeg.h>

#include "data/loader.h"
#include "error.h"

namespace facetrain {

void decode_jpeg(std::span<const uint8_t> encoded, int height, int width, bool bgr, uint8_t* out,
                 const std::string& code, const std::string& subject) {
  struct Handle {
    const tjhandle tj = tjInitDecompress();
    ~Handle() { tjDestroy(tj); }
  };
  thread_local const Handle handle;
  const auto size = [](int h, int w) {
    return std::to_string(h) + " x " + std::to_string(w) + " pixels (height x width)";
  };
  const auto refuse = [&] {
    throw Error(code, subject, std::string("is no intact JPEG (") + tjGetErrorStr2(handle.tj) + ")",
                "a JPEG of " + size(height, width));
  };
  int found_width = 0, found_height = 0, subsampling = 0, colors = 0;
  if (tjDecompressHeader3(handle.tj, encoded.data(), encoded.size(), &found_width, &found_height, &subsampling,
                          &colors) != 0) {
    refuse();
  }
  if (found_height != height || found_width != width) {
    throw Error(code, subject, "has " + size(found_height, found_width), "pictures have " + size(height, width));
  }
  // A gray JPEG gives three equal channels. A warning (data that ends early, an invalid Huffman code) is an error here:
  // the rest of the picture would be gray.
  if (tjDecompress2(handle.tj, encoded.data(), encoded.size(), out, width, 0, height, bgr ? TJPF_BGR : TJPF_RGB,
                    TJFLAG_LIMITSCANS) != 0) {
    refuse();
  }
}

}  // namespace facetrain
