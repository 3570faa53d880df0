// The adapters of csrc/torch declare and register their own ops; nothing is left for this file but its name.
#pragma once
