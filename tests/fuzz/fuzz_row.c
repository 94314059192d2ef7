/* SPDX-License-Identifier: BSD-3-Clause */
/* Rows of a database that somebody else may have written: each cell in turn. */
#include "hub.h"

#include <assert.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct px_row row = {0}, again = {0};
    struct px_span text = {(const char *)data + 1, size - 1};
    if (size == 0)
        return 0;
    px_row_set(&row, PX_COL_MSG_ID, PX_SPAN("a_1"));
    px_row_set(&row, PX_COL_HEADER, PX_SPAN("{}"));
    px_row_set(&row, PX_COL_RESULT_HEADER, PX_SPAN("{}"));
    px_row_set(&row, (enum px_column)(data[0] % PX_COLUMNS), text);
    struct px_record *record = px_row_to_record(&row);
    if (record != NULL) {
        px_row_from_record(&again, record);
        json_decref(px_record_json(record, NULL));
        px_record_destroy(record);
    }
    px_row_fini(&row);
    px_row_fini(&again);
    return 0;
}
