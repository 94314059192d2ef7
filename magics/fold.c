/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * fold: what many engines say alike is shown once, with the engines that said it. Pure.
 */
#include "magics.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <uthash.h>

#define RANGES_SHOWN 8 /* in a label; engines beyond them are counted */
#define DECIMAL "0123456789"
#define HEX DECIMAL "abcdefABCDEF"

struct seen {
    UT_hash_handle hh;
    size_t index;
};

void px_fold(const struct px_span *keys, size_t count, size_t *first)
{
    struct seen *table = NULL, *all = count ? px_alloc(count * sizeof *all) : NULL;
    for (size_t i = 0; i < count; i++) {
        struct seen *found;
        HASH_FIND(hh, table, keys[i].data ? keys[i].data : "", keys[i].size, found);
        if (!found) {
            found = &all[i];
            found->index = i;
            HASH_ADD_KEYPTR(hh, table, keys[i].data ? keys[i].data : "", keys[i].size, found);
        }
        first[i] = found->index;
    }
    HASH_CLEAR(hh, table);
    free(all);
}

size_t px_fold_members(const size_t *first, size_t count, size_t group, size_t *members)
{
    size_t found = 0;
    for (size_t i = group; first[group] == group && i < count; i++) {
        if (first[i] == group)
            members[found++] = i;
    }
    return found;
}

static int by_number(const void *a, const void *b)
{
    const int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

void px_render_ranges(struct px_buf *out, const int *ids, size_t count)
{
    int *sorted = px_alloc((count + 1) * sizeof *sorted);
    memcpy(sorted, ids, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, by_number);
    size_t ranges = 0;
    for (size_t i = 0, end; i < count; i = end) {
        for (end = i + 1; end < count && sorted[end] - sorted[end - 1] <= 1;)
            end++;
        if (ranges++ == RANGES_SHOWN) {
            px_buf_printf(out, ",... (%zu engines)", count);
            break;
        }
        px_buf_printf(out, "%s%d", i ? "," : "", sorted[i]);
        if (sorted[end - 1] != sorted[i])
            px_buf_printf(out, "-%d", sorted[end - 1]);
    }
    free(sorted);
}

/* Addresses, the numbers of cells and engines and the ids of tasks differ between engines for one
 * error. */
static const struct difference {
    const char *prefix, *digits;
} differences[] = {
    {"0x", HEX},
    {"In[", HEX},
    {"In [", HEX},
    {"ipykernel_", HEX},
    {"ipython-input-", HEX},
    {"Task '", HEX "-_"},
    {"Engine ", DECIMAL},
    {" task '", HEX "-_"},
};

/* What begins here; NULL: none of them. */
static const struct difference *find_difference(const char *at, size_t left)
{
    for (size_t i = 0; i < PX_COUNT(differences); i++) {
        const size_t size = strlen(differences[i].prefix);
        if (left > size && memcmp(at, differences[i].prefix, size) == 0)
            return &differences[i];
    }
    return NULL;
}

/* The size of a color's escape sequence that begins here. */
static size_t color_size(const char *at, size_t left)
{
    size_t size = 2;
    if (left < 3 || at[0] != '\033' || at[1] != '[')
        return 0;
    while (size < left && (isdigit((unsigned char)at[size]) || at[size] == ';'))
        size++;
    return size < left && at[size] == 'm' ? size + 1 : 0;
}

void px_fold_error_key(struct px_buf *out, struct px_span traceback)
{
    px_buf_text(out, "");
    for (size_t i = 0; i < traceback.size;) {
        const char *at = traceback.data + i;
        const size_t left = traceback.size - i;
        const size_t color = color_size(at, left);
        const struct difference *difference = color ? NULL : find_difference(at, left);
        const size_t kept = color ? 0 : difference ? strlen(difference->prefix) : 1;
        px_buf_append(out, at, kept);
        i += color + kept;
        while (difference && i < traceback.size && traceback.data[i] &&
               strchr(difference->digits, traceback.data[i]))
            i++;
    }
}
