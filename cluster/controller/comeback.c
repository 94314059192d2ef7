/* SPDX-License-Identifier: BSD-3-Clause */
/* comeback: see comeback.h. */
#include "comeback.h"

#include <stdlib.h>
#include <string.h>
#include <uthash.h>
#include <utlist.h>

struct guest {
    UT_hash_handle hh;
    char uuid[];
};

struct elsewhere {
    UT_hash_handle hh;
    char uuid[PX_MAX_IDENTITY + 1];
    char msg_id[];
};

struct parked {
    struct px_msg *msg;
    struct parked *prev, *next;
};

struct px_comeback {
    struct guest *expected;
    struct elsewhere *elsewhere;
    struct parked *parked;
};

struct px_comeback *px_comeback_create(void)
{
    return px_alloc(sizeof(struct px_comeback));
}

static void drop_elsewhere(struct px_comeback *comeback, struct elsewhere *entry)
{
    HASH_DEL(comeback->elsewhere, entry);
    free(entry);
}

void px_comeback_destroy(struct px_comeback *comeback)
{
    if (comeback == NULL)
        return;
    px_comeback_give_up(comeback);
    for (struct px_msg *msg; (msg = px_comeback_unpark(comeback)) != NULL;)
        px_msg_destroy(msg);
    struct elsewhere *entry, *next;
    HASH_ITER(hh, comeback->elsewhere, entry, next)
        drop_elsewhere(comeback, entry);
    free(comeback);
}

void px_comeback_expect(struct px_comeback *comeback, struct px_span uuid)
{
    px_comeback_arrived(comeback, uuid); /* never twice */
    struct guest *guest = px_alloc(sizeof(*guest) + uuid.size + 1);
    memcpy(guest->uuid, uuid.data, uuid.size);
    HASH_ADD_KEYPTR(hh, comeback->expected, guest->uuid, uuid.size, guest);
}

void px_comeback_arrived(struct px_comeback *comeback, struct px_span uuid)
{
    struct guest *guest;
    HASH_FIND(hh, comeback->expected, uuid.data, uuid.size, guest);
    if (guest == NULL)
        return;
    HASH_DEL(comeback->expected, guest);
    free(guest);
}

void px_comeback_leave(struct px_comeback *comeback, struct px_span uuid)
{
    struct elsewhere *entry, *next;
    px_comeback_arrived(comeback, uuid);
    HASH_ITER(hh, comeback->elsewhere, entry, next) {
        if (px_span_equal(uuid, entry->uuid))
            drop_elsewhere(comeback, entry);
    }
}

void px_comeback_holds(struct px_comeback *comeback, struct px_span uuid, struct px_span msg_id)
{
    char before[PX_MAX_IDENTITY + 1];
    if (uuid.size > PX_MAX_IDENTITY || HASH_COUNT(comeback->elsewhere) >= PX_MAX_ELSEWHERE)
        return;
    (void)px_comeback_take(comeback, msg_id, before);
    struct elsewhere *entry = px_alloc(sizeof(*entry) + msg_id.size + 1);
    memcpy(entry->uuid, uuid.data, uuid.size);
    memcpy(entry->msg_id, msg_id.data, msg_id.size);
    HASH_ADD_KEYPTR(hh, comeback->elsewhere, entry->msg_id, msg_id.size, entry);
}

bool px_comeback_take(struct px_comeback *comeback, struct px_span msg_id,
                      char uuid[PX_MAX_IDENTITY + 1])
{
    struct elsewhere *entry;
    HASH_FIND(hh, comeback->elsewhere, msg_id.data, msg_id.size, entry);
    if (entry == NULL)
        return false;
    memcpy(uuid, entry->uuid, sizeof(entry->uuid));
    drop_elsewhere(comeback, entry);
    return true;
}

void px_comeback_give_up(struct px_comeback *comeback)
{
    struct guest *guest, *next;
    HASH_ITER(hh, comeback->expected, guest, next) {
        HASH_DEL(comeback->expected, guest);
        free(guest);
    }
}

bool px_comeback_waits(const struct px_comeback *comeback)
{
    return comeback->expected != NULL;
}

void px_comeback_park(struct px_comeback *comeback, struct px_msg *msg)
{
    struct parked *parked = px_alloc(sizeof(*parked));
    parked->msg = msg;
    DL_APPEND(comeback->parked, parked);
}

struct px_msg *px_comeback_unpark(struct px_comeback *comeback)
{
    struct parked *parked = comeback->parked;
    if (parked == NULL)
        return NULL;
    struct px_msg *msg = parked->msg;
    DL_DELETE(comeback->parked, parked);
    free(parked);
    return msg;
}
