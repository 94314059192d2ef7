/* SPDX-License-Identifier: BSD-3-Clause */
/* Configuration files and port lists of pxcontroller. */
#include "controller.h"

#include <assert.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct px_span text = {(const char *)data, size};
    struct px_settings settings = {0};
    struct px_port_pool pool;
    px_log_init("fuzz", PX_ERROR);
    const int taken = px_config_py(text, px_settings_trait, &settings);
    assert(taken == 0 || px_config_has_code(text, false));
    assert(!px_config_has_code(text, true) || px_config_has_code(text, false));
    px_config_json(text, px_settings_trait, &settings);
    px_settings_fini(&settings);
    char *copy = px_strndup(text.data, text.size);
    if (px_ports_parse(copy, &pool, NULL) == 0)
        assert(pool.count >= 0 && pool.count <= PX_MAX_PORTS);
    free(copy);
    return 0;
}
