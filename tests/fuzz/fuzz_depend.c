/* SPDX-License-Identifier: BSD-3-Clause */
/* Dependency sets and lists of targets: what is accepted is a sorted set of proper ids. */
#include "schedule.h"

#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_set(char **ids, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        assert(ids[i][0] != 0 && strlen(ids[i]) <= PX_MAX_MSG_ID);
        assert(i == 0 || strcmp(ids[i - 1], ids[i]) < 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct px_span text = {(const char *)data, size};
    struct px_depend depend;
    char **names;
    size_t count;
    int rc = px_depend_parse(text, &depend, NULL);
    assert(rc == 0 || (depend.ids == NULL && depend.count == 0));
    assert(depend.success || depend.failure);
    check_set(depend.ids, depend.count);
    px_depend_fini(&depend);
    if (px_names_parse(text, 100, &names, &count, NULL) == 0) {
        assert(count <= 100);
        check_set(names, count);
        px_names_free(names, count);
    }
    return 0;
}
