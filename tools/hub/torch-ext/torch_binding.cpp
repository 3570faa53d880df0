// The module that Python imports. Each file of csrc/torch registers its op as it is loaded; the schemas are in _schemas.py.
#include "registration.h"
#include "torch_binding.h"

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
