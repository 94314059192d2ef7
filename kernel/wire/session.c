/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * session: who we are, how our messages are signed, and which of theirs we have seen.
 *
 * Signature: hex HMAC of header, parent header, metadata and content, concatenated as sent
 * ("Messaging in Jupyter", The Wire Protocol). The key is absorbed once a session and the
 * prepared state reused, which makes a signature six times cheaper than a one-shot HMAC.
 *
 * Replays: the first 8 bytes of each good signature are kept in a ring of PX_REPLAY_WINDOW
 * and in a hash set of the same life. Without the key nobody can choose those bytes, so two
 * different messages meet there once in 2^48. Only verified messages are remembered: a
 * forger cannot push true ones out of the window.
 */
#include "private.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <uuid/uuid.h>

#define MOST_ID 127
#define SET_SIZE (2 * PX_REPLAY_WINDOW) /* open addressing, at most half full; power of two */

struct replay {
    uint64_t *ring; /* oldest first, wrapping */
    uint64_t *set;  /* 0: free */
    size_t next, count;
};

struct px_session {
    char id[MOST_ID + 1];
    char *fixed;      /* the header's text between msg_type and date: username and session */
    EVP_MAC_CTX *mac; /* NULL without a key */
    size_t digest_size;
    unsigned long counter;
    pid_t pid;
    char last_id[160];
    struct replay replay;
};

/* ---- ids ---- */

void px_id_random(char out[PX_ID_SIZE])
{
    uuid_t bytes;
    char text[37];
    uuid_generate_random(bytes);
    uuid_unparse_lower(bytes, text);
    char *at = out;
    for (const char *from = text; *from; from++) {
        if (*from != '-')
            *at++ = *from;
        if (at - out == 8 && *from != '-')
            *at++ = '-';
    }
    *at = 0;
}

/* ---- the keyed hash ---- */

static EVP_MAC_CTX *mac_create(const char *key, const char *scheme, size_t *digest_size,
                               struct px_error *err)
{
    if (strncmp(scheme, "hmac-", 5) != 0) {
        px_fail(err, PX_EINVAL, "signature scheme '%.60s' is not hmac-<hash>", scheme);
        return NULL;
    }
    char digest[64];
    snprintf(digest, sizeof digest, "%s", scheme + 5);
    OSSL_PARAM params[] = {OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest, 0),
                           OSSL_PARAM_construct_end()};
    EVP_MAC *hmac = EVP_MAC_fetch(NULL, "HMAC", NULL);
    EVP_MAC_CTX *mac = hmac ? EVP_MAC_CTX_new(hmac) : NULL;
    EVP_MAC_free(hmac);
    if (mac && EVP_MAC_init(mac, (const unsigned char *)key, strlen(key), params)) {
        *digest_size = EVP_MAC_CTX_get_mac_size(mac);
        if (*digest_size >= 8 && *digest_size <= EVP_MAX_MD_SIZE)
            return mac;
    }
    EVP_MAC_CTX_free(mac);
    px_fail(err, PX_EINVAL, "signature scheme '%.60s' is not known here", scheme);
    return NULL;
}

static void digest(struct px_session *session, const struct px_span parts[4],
                   unsigned char out[EVP_MAX_MD_SIZE])
{
    size_t size = 0;
    bool good = EVP_MAC_init(session->mac, NULL, 0, NULL); /* back to the state with the key */
    for (int i = 0; i < 4; i++)
        good = good &&
               EVP_MAC_update(session->mac, (const unsigned char *)parts[i].data, parts[i].size);
    if (!good || !EVP_MAC_final(session->mac, out, &size, EVP_MAX_MD_SIZE))
        px_die(1, "the HMAC failed");
}

static void to_hex(const unsigned char *bytes, size_t size, char *out)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < size; i++) {
        out[2 * i] = digits[bytes[i] >> 4];
        out[2 * i + 1] = digits[bytes[i] & 15];
    }
}

/* Fills `out` (2 * EVP_MAX_MD_SIZE) and returns the signature's length; 0 without a key. */
static size_t sign(struct px_session *session, const struct px_span parts[4], char *out)
{
    if (!session->mac)
        return 0;
    unsigned char bytes[EVP_MAX_MD_SIZE];
    digest(session, parts, bytes);
    to_hex(bytes, session->digest_size, out);
    return 2 * session->digest_size;
}

/* ---- replays ---- */

/* Where `mark` is, or the free place where it would go. */
static size_t find(const struct replay *replay, uint64_t mark)
{
    size_t at = mark & (SET_SIZE - 1);
    while (replay->set[at] && replay->set[at] != mark)
        at = (at + 1) & (SET_SIZE - 1);
    return at;
}

/* Removes the mark at `hole`, moving later ones of its run back so that each stays findable. */
static void close_hole(struct replay *replay, size_t hole)
{
    for (size_t at = hole;;) {
        replay->set[hole] = 0;
        size_t home;
        do {
            at = (at + 1) & (SET_SIZE - 1);
            if (!replay->set[at])
                return;
            home = replay->set[at] & (SET_SIZE - 1);
        } while (((at - home) & (SET_SIZE - 1)) < ((at - hole) & (SET_SIZE - 1)));
        replay->set[hole] = replay->set[at];
        hole = at;
    }
}

/* Its place in the ring stays taken; what is found there later is no longer in the set. */
static void forget(struct replay *replay, uint64_t mark)
{
    mark += mark == 0;
    const size_t at = find(replay, mark);
    if (replay->set[at])
        close_hole(replay, at);
}

/* False when the mark was there; otherwise it is now. */
static bool remember(struct replay *replay, uint64_t mark)
{
    if (!replay->ring) {
        replay->ring = px_alloc(PX_REPLAY_WINDOW * sizeof *replay->ring);
        replay->set = px_alloc(SET_SIZE * sizeof *replay->set);
    }
    mark += mark == 0;
    if (replay->set[find(replay, mark)])
        return false;
    if (replay->count == PX_REPLAY_WINDOW)
        forget(replay, replay->ring[replay->next]);
    else
        replay->count++;
    replay->ring[replay->next] = mark;
    replay->next = (replay->next + 1) % PX_REPLAY_WINDOW;
    replay->set[find(replay, mark)] = mark;
    return true;
}

/* ---- session ---- */

/* It is written into JSON as it is. */
static bool is_id(const char *text)
{
    const char *end = text;
    while (*end >= ' ' && *end <= '~' && *end != '"' && *end != '\\')
        end++;
    return *end == 0 && end - text <= MOST_ID;
}

struct px_session *px_session_create(const char *key, const char *scheme, const char *id,
                                     struct px_error *err)
{
    if (id && !is_id(id)) {
        px_fail(err, PX_EINVAL, "a session's id is ASCII without quotes, and not longer than 127");
        return NULL;
    }
    struct px_session *session = px_alloc(sizeof *session);
    session->pid = getpid();
    if (id)
        snprintf(session->id, sizeof session->id, "%s", id);
    else
        px_id_random(session->id);
    if (key && key[0]) {
        session->mac = mac_create(key, scheme && scheme[0] ? scheme : "hmac-sha256",
                                  &session->digest_size, err);
        if (!session->mac) {
            px_session_destroy(session);
            return NULL;
        }
    }
    const char *user = getenv("USER");
    struct px_buf fixed = {0};
    px_buf_text(&fixed, "\", \"username\": ");
    px_buf_json_string(&fixed, user && user[0] ? user : "username",
                       strlen(user && user[0] ? user : "username"));
    px_buf_text(&fixed, ", \"session\": ");
    px_buf_json_string(&fixed, session->id, strlen(session->id));
    px_buf_text(&fixed, ", \"date\": \"");
    session->fixed = fixed.data;
    return session;
}

void px_session_destroy(struct px_session *session)
{
    if (!session)
        return;
    EVP_MAC_CTX_free(session->mac);
    free(session->replay.ring);
    free(session->replay.set);
    free(session->fixed);
    free(session);
}

const char *px_session_id(const struct px_session *session)
{
    return session->id;
}

const char *px_session_last_id(const struct px_session *session)
{
    return session->last_id;
}

int px_session_verify(struct px_session *session, const struct px_msg *msg, struct px_error *err)
{
    if (!session->mac)
        return 0;
    const struct px_span given = px_msg_signature(msg);
    if (given.size == 0)
        return px_fail(err, PX_EAUTH, "unsigned message");
    if (given.size != 2 * session->digest_size)
        return px_fail(err, PX_EAUTH, "signature of %zu characters, %zu expected", given.size,
                       2 * session->digest_size);
    const struct px_span parts[4] = {px_msg_header(msg), px_msg_parent(msg), px_msg_metadata(msg),
                                     px_msg_content(msg)};
    unsigned char bytes[EVP_MAX_MD_SIZE];
    char right[2 * EVP_MAX_MD_SIZE];
    digest(session, parts, bytes);
    to_hex(bytes, session->digest_size, right);
    if (CRYPTO_memcmp(right, given.data, given.size) != 0)
        return px_fail(err, PX_EAUTH, "wrong signature");
    uint64_t mark;
    memcpy(&mark, bytes, sizeof mark);
    if (!remember(&session->replay, mark))
        return px_fail(err, PX_EEXIST, "message seen before");
    return 0;
}

void px_session_forget(struct px_session *session, const struct px_msg *msg)
{
    if (!session->mac || !session->replay.set)
        return;
    const struct px_span parts[4] = {px_msg_header(msg), px_msg_parent(msg), px_msg_metadata(msg),
                                     px_msg_content(msg)};
    unsigned char bytes[EVP_MAX_MD_SIZE];
    uint64_t mark;
    digest(session, parts, bytes);
    memcpy(&mark, bytes, sizeof mark);
    forget(&session->replay, mark);
}

/* ---- building ---- */

static void put_header(struct px_session *session, const char *type, struct px_buf *out)
{
    snprintf(session->last_id, sizeof session->last_id, "%s_%d_%lu", session->id, (int)session->pid,
             session->counter++);
    char date[PX_DATE_SIZE];
    const size_t date_size = px_date_now(date);
    px_buf_text(out, "{\"msg_id\": \"");
    px_buf_text(out, session->last_id);
    px_buf_text(out, "\", \"msg_type\": \"");
    px_buf_text(out, type);
    px_buf_text(out, session->fixed);
    px_buf_append(out, date, date_size);
    px_buf_text(out, "\", \"version\": \"" PX_PROTOCOL_VERSION "\"}");
}

static void append_idents(struct px_msg *msg, const struct px_draft *draft)
{
    if (draft->idents_of)
        px_msg_append_frames(msg, draft->idents_of, 0, px_msg_ident_count(draft->idents_of));
    for (size_t i = 0; i < draft->ident_count; i++)
        px_msg_append(msg, draft->idents[i].data, draft->idents[i].size);
}

static struct px_span or_empty_object(struct px_span json)
{
    return json.size ? json : PX_SPAN("{}");
}

struct px_msg *px_session_build(struct px_session *session, const struct px_draft *draft)
{
    struct px_buf header = {0};
    put_header(session, draft->type, &header);
    const struct px_span parts[4] = {px_buf_span(&header), or_empty_object(draft->parent),
                                     or_empty_object(draft->metadata),
                                     or_empty_object(draft->content)};
    char signature[2 * EVP_MAX_MD_SIZE];
    const size_t signature_size = sign(session, parts, signature);
    struct px_msg *msg = px_msg_create();
    append_idents(msg, draft);
    msg->delimiter = msg->end;
    px_msg_append(msg, PX_DELIMITER, sizeof PX_DELIMITER - 1);
    px_msg_append(msg, signature, signature_size);
    for (int i = 0; i < 4; i++)
        px_msg_append(msg, parts[i].data, parts[i].size);
    px_buf_fini(&header);
    return msg;
}

void px_session_resign(struct px_session *session, struct px_msg *msg)
{
    const struct px_span parts[4] = {px_msg_header(msg), px_msg_parent(msg), px_msg_metadata(msg),
                                     px_msg_content(msg)};
    char signature[2 * EVP_MAX_MD_SIZE];
    const size_t size = sign(session, parts, signature);
    px_msg_replace(msg, px_msg_ident_count(msg) + 1, signature, size);
}
