// The addon's entry: each register_* adds the functions of one part to `exports`.
#include <napi.h>

#include "node/register.h"

static Napi::Object init(Napi::Env env, Napi::Object exports) { return exports; }

NODE_API_MODULE(facetrain, init)
