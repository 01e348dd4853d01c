// PRelu in parts, as the quantizer writes it for ONNX Runtime: relu(x) + slope * min(x, 0). One without slopes is
// written as Relu, which the reader knows.
// trainer-image/src/onnx/prelu-parts.ts writes them, and joins them in the same way.
#pragma once

#include <vector>

#include "int7/onnx_file.h"

namespace facetrain::int7 {

// The nodes of a file with a PRelu for each sum of such parts, which has the sum's name and output. Operands may come
// in any order; parts that other nodes read, too, or that are outputs stay as they are.
std::vector<OnnxNode> join_prelus(const OnnxFile& file);

}  // namespace facetrain::int7
