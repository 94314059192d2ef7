/* SPDX-License-Identifier: BSD-3-Clause */
/* Connection files: what is read, written, refused. */
#include "wire/wire.h"
#include "../test.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* As ipcontroller writes them. */
static const char client_file[] =
    "{\"ssh\": \"\", \"interface\": \"tcp://127.0.0.1\", \"registration\": 47621, \"control\": "
    "44645, \"mux\": 33593, \"task\": 42983, \"task_scheme\": \"leastload\", \"iopub\": 47697, "
    "\"notification\": 38873, \"broadcast\": 60717, \"key\": \"1ed9\", \"curve_serverkey\": null, "
    "\"location\": \"vm\", \"pack\": \"json\", \"unpack\": \"json\", \"signature_scheme\": "
    "\"hmac-sha256\", \"px_future\": [1]}";
static const char engine_file[] =
    "{\"interface\": \"tcp://*\", \"registration\": 1, \"control\": 2, \"mux\": 3, \"task\": 4, "
    "\"iopub\": 5, \"hb_ping\": 6, \"hb_pong\": 7, \"broadcast\": [8, 9], \"pack\": \"json\", "
    "\"unpack\": \"json\", \"signature_scheme\": \"hmac-sha256\"}";

static void files_of_the_reference_are_read(void **state)
{
    (void)state;
    struct px_cluster_connection c;
    struct px_error err;
    assert_int_equal(
        px_cluster_connection_parse(px_span_of(client_file), "f", PX_ROLE_CLIENT, &c, &err), 0);
    assert_int_equal(c.registration, 47621);
    assert_int_equal(c.notification, 38873);
    assert_int_equal(c.broadcast_count, 1);
    assert_int_equal(c.broadcast[0], 60717);
    assert_string_equal(c.key, "1ed9");
    assert_null(c.curve_serverkey);
    char endpoint[PX_ENDPOINT_SIZE];
    assert_int_equal(px_cluster_endpoint(&c, c.mux, endpoint, &err), 0);
    assert_string_equal(endpoint, "tcp://127.0.0.1:33593");
    px_cluster_connection_fini(&c);
    assert_int_equal(
        px_cluster_connection_parse(px_span_of(engine_file), "f", PX_ROLE_ENGINE, &c, &err), 0);
    assert_int_equal(c.hb_pong, 7);
    assert_int_equal(c.broadcast_count, 2);
    assert_string_equal(c.key, "");
    assert_int_equal(px_cluster_endpoint(&c, c.hb_ping, endpoint, &err), 0);
    assert_string_equal(endpoint, "tcp://127.0.0.1:6");
    px_cluster_connection_fini(&c);
}

static void refusals_name_file_and_key(void **state)
{
    (void)state;
    static const struct {
        const char *text, *error;
    } rows[] = {
        {"", "f: not JSON"},
        {"[]", "f: JSON, but not an object"},
        {"{\"interface\": 7}", "f: \"interface\" is not a string"},
        {"{}", "f: \"interface\" is missing"},
        {"{\"interface\": \"tcp://a\", \"registration\": 70000}",
         "f: \"registration\" is not a port number"},
        {"{\"interface\": \"tcp://a\", \"registration\": \"1\"}",
         "f: \"registration\" is not a port number"},
        {"{\"interface\": \"tcp\\u0000://a\"}", "f: \"interface\" has a zero byte in it"},
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_cluster_connection c;
        struct px_error err;
        assert_int_equal(
            px_cluster_connection_parse(px_span_of(rows[i].text), "f", PX_ROLE_ENGINE, &c, &err),
            -1);
        if (strncmp(err.text, rows[i].error, strlen(rows[i].error)) != 0)
            fail_msg("%s: %s", rows[i].text, err.text);
        assert_null(c.interface); /* nothing is handed out */
    }
}

static void other_packers_are_refused(void **state)
{
    (void)state;
    char text[sizeof engine_file];
    memcpy(text, engine_file, sizeof text);
    memcpy(strstr(text, "\"json\""), "\"jsox\"", 6);
    struct px_cluster_connection c;
    struct px_error err;
    assert_int_equal(px_cluster_connection_parse(px_span_of(text), "f", PX_ROLE_ENGINE, &c, &err),
                     -1);
    assert_string_equal(err.text, "f: packer \"jsox\": only json is spoken here, so start the "
                                  "controller with it");
}

static void what_is_written_is_read_and_private(void **state)
{
    (void)state;
    char dir[] = "/tmp/px-test-XXXXXX", path[64];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/engine.json", dir);
    struct px_cluster_connection c, again;
    assert_int_equal(
        px_cluster_connection_parse(px_span_of(engine_file), "f", PX_ROLE_ENGINE, &c, NULL), 0);
    assert_int_equal(px_cluster_connection_write(path, PX_ROLE_ENGINE, &c, NULL), 0);
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    assert_int_equal(px_cluster_connection_read(path, PX_ROLE_ENGINE, &again, NULL), 0);
    assert_int_equal(again.broadcast[1], 9);
    assert_string_equal(again.interface, "tcp://*");
    assert_string_equal(again.ssh, "");
    px_cluster_connection_fini(&c);
    px_cluster_connection_fini(&again);
    struct px_error err;
    assert_int_equal(px_cluster_connection_read("/nowhere/x.json", PX_ROLE_ENGINE, &c, &err), -1);
    assert_int_equal(err.code, PX_ENOENT);
    unlink(path);
    rmdir(dir);
}

static void a_kernels_file(void **state)
{
    (void)state;
    char dir[] = "/tmp/px-test-XXXXXX", path[64];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/kernel.json", dir);
    const char *text = "{\"shell_port\": 1, \"iopub_port\": 0, \"ip\": \"127.0.0.1\", "
                       "\"transport\": \"tcp\", \"key\": \"k\"}";
    assert_int_equal(px_file_write(path, 0600, px_span_of(text), NULL), 0);
    struct px_kernel_connection k;
    struct px_error err;
    assert_int_equal(px_kernel_connection_read(path, &k, &err), 0);
    assert_int_equal(k.shell_port, 1);
    assert_string_equal(k.signature_scheme, "hmac-sha256");
    k.hb_port = 5;
    assert_int_equal(px_kernel_connection_write(path, &k, &err), 0);
    px_kernel_connection_fini(&k);
    assert_int_equal(px_kernel_connection_read(path, &k, &err), 0);
    assert_int_equal(k.hb_port, 5);
    px_kernel_connection_fini(&k);
    assert_int_equal(px_file_write(path, 0600, PX_SPAN("{\"transport\": \"inproc\"}"), NULL), 0);
    assert_int_equal(px_kernel_connection_read(path, &k, &err), -1);
    assert_non_null(strstr(err.text, "inproc"));
    unlink(path);
    rmdir(dir);
}

/* Ports in it are an earlier kernel's. */
static void a_registration_file(void **state)
{
    (void)state;
    char dir[] = "/tmp/px-test-XXXXXX", path[64];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/registration.json", dir);
    assert_int_equal(px_file_write(path, 0600, PX_SPAN("{\"registration_port\": 7}"), NULL), 0);
    struct px_kernel_connection k;
    struct px_error err;
    assert_int_equal(px_kernel_connection_read(path, &k, &err), 0);
    assert_int_equal(k.registration_port, 7);
    k.shell_port = 5;
    assert_int_equal(px_kernel_connection_write(path, &k, &err), 0);
    px_kernel_connection_fini(&k);
    assert_int_equal(px_kernel_connection_read(path, &k, &err), 0);
    assert_int_equal(k.registration_port, 7);
    assert_int_equal(k.shell_port, 0);
    px_kernel_connection_fini(&k);
    assert_int_equal(px_file_write(path, 0600, PX_SPAN("{\"registration_port\": 65536}"), NULL), 0);
    assert_int_equal(px_kernel_connection_read(path, &k, &err), -1);
    assert_non_null(strstr(err.text, "\"registration_port\" is not a port number"));
    unlink(path);
    rmdir(dir);
}

/* The client chooses the keys; what the kernel writes back has them still. */
static void a_kernels_keys(void **state)
{
    (void)state;
    static const char secret[] = "JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6";
    static const char named[] = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7";
    static const struct {
        const char *text, *why; /* NULL: is read */
    } rows[] = {
        {"{}", NULL},
        {"{\"curve_publickey\": null, \"curve_secretkey\": null}", NULL},
        {"{\"curve_publickey\": \"$P\", \"curve_secretkey\": \"$S\"}", NULL},
        {"{\"curve_secretkey\": \"$S\"}", NULL},
        {"{\"curve_publickey\": \"$P\"}", "\"curve_publickey\" without \"curve_secretkey\""},
        {"{\"curve_publickey\": \"$S\", \"curve_secretkey\": \"$S\"}", "is not that of"},
        {"{\"curve_secretkey\": \"\"}", "not a CURVE key"},
        {"{\"curve_secretkey\": \"$S$S\"}", "not a CURVE key"},
        {"{\"curve_secretkey\": 7}", "is not a string"},
    };
    char dir[] = "/tmp/px-test-XXXXXX", path[64];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/kernel.json", dir);
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_buf text = {0};
        for (const char *at = rows[i].text; *at; at++)
            if (*at == '$')
                px_buf_append(&text, *++at == 'P' ? named : secret, PX_CURVE_KEY_SIZE - 1);
            else
                px_buf_append(&text, at, 1);
        assert_int_equal(px_file_write(path, 0600, px_buf_span(&text), NULL), 0);
        px_buf_fini(&text);
        struct px_kernel_connection k, again;
        struct px_error err;
        if (rows[i].why) {
            assert_int_equal(px_kernel_connection_read(path, &k, &err), -1);
            assert_non_null(strstr(err.text, rows[i].why));
            continue;
        }
        assert_int_equal(px_kernel_connection_read(path, &k, &err), 0);
        assert_int_equal(k.curve_secretkey != NULL, strchr(rows[i].text, '$') != NULL);
        assert_int_equal(px_kernel_connection_write(path, &k, &err), 0);
        assert_int_equal(px_kernel_connection_read(path, &again, &err), 0);
        assert_true(k.curve_secretkey ? strcmp(again.curve_secretkey, secret) == 0
                                      : again.curve_secretkey == NULL);
        px_kernel_connection_fini(&k);
        px_kernel_connection_fini(&again);
    }
    unlink(path);
    rmdir(dir);
}

/* Where somebody listens, and only there. */
static void a_local_address_is_preferred(void **state)
{
    (void)state;
    char name[PX_ID_SIZE], local[PX_ENDPOINT_SIZE], endpoint[PX_ENDPOINT_SIZE];
    struct px_error err;
    px_id_random(name);
    struct px_cluster_connection c = {.interface = (char *)"tcp://127.0.0.1", .local = name};
    void *context = px_context_create(1);
    struct px_socket *socket = px_socket_create(context, PX_ROUTER, &err);
    assert_true(px_cluster_local(&c, 7, local));
    assert_int_equal(px_socket_bind(socket, local, &err), 0);
    assert_int_equal(px_cluster_endpoint(&c, 7, endpoint, &err), 0);
    assert_string_equal(endpoint, local);
    assert_int_equal(px_cluster_endpoint(&c, 8, endpoint, &err), 0);
    assert_string_equal(endpoint, "tcp://127.0.0.1:8");
    char too_long[300];
    memset(too_long, 'x', sizeof too_long - 1);
    too_long[sizeof too_long - 1] = 0;
    c.local = too_long;
    assert_false(px_cluster_local(&c, 7, local));
    px_socket_destroy(socket);
    px_context_destroy(context);
}

static void an_interface_must_have_a_form(void **state)
{
    (void)state;
    struct px_cluster_connection c = {.interface = (char *)"nowhere"};
    char endpoint[PX_ENDPOINT_SIZE];
    struct px_error err;
    assert_int_equal(px_cluster_endpoint(&c, 1, endpoint, &err), -1);
    c.interface = (char *)"tcp://0.0.0.0";
    c.location = (char *)"no-such-host.invalid";
    assert_int_equal(px_cluster_endpoint(&c, 1, endpoint, &err), -1);
    assert_non_null(strstr(err.text, "no-such-host.invalid"));
    c.location = (char *)"127.0.0.1";
    assert_int_equal(px_cluster_endpoint(&c, 1, endpoint, &err), 0);
    assert_string_equal(endpoint, "tcp://127.0.0.1:1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files_of_the_reference_are_read),
        cmocka_unit_test(refusals_name_file_and_key),
        cmocka_unit_test(other_packers_are_refused),
        cmocka_unit_test(what_is_written_is_read_and_private),
        cmocka_unit_test(a_kernels_file),
        cmocka_unit_test(a_registration_file),
        cmocka_unit_test(a_kernels_keys),
        cmocka_unit_test(an_interface_must_have_a_form),
        cmocka_unit_test(a_local_address_is_preferred),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
