/* SPDX-License-Identifier: BSD-3-Clause */
/* Profile directories: ipyparallel's names, in ipyparallel's order of preference. */
#include "wire/wire.h"
#include "../test.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void preference(void **state)
{
    (void)state;
    char out[PX_PATH_SIZE];
    struct px_error err;
    static const struct {
        const char *home, *ipython, *profile_env;
        struct px_profile_choice choice;
        const char *path;
    } rows[] = {
        {"/h", NULL, NULL, {0}, "/h/.ipython/profile_default"},
        {"/h", NULL, NULL, {.profile = "p"}, "/h/.ipython/profile_p"},
        {"/h", "/i", NULL, {0}, "/i/profile_default"},
        {"/h", "/i", NULL, {.ipython_dir = "/j", .profile = "p"}, "/j/profile_p"},
        {"/h", "/i", "/e", {0}, "/e"},
        {"/h", "/i", "/e", {.profile = "p"}, "/i/profile_p"},
        {"/h", "/i", "/e", {.profile_dir = "/d"}, "/d"},
        {"/h", "", "", {.profile = ""}, "/h/.ipython/profile_default"},
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        setenv("HOME", rows[i].home, 1);
        rows[i].ipython ? setenv("IPYTHONDIR", rows[i].ipython, 1) : unsetenv("IPYTHONDIR");
        rows[i].profile_env ? setenv("IPP_PROFILE_DIR", rows[i].profile_env, 1)
                            : unsetenv("IPP_PROFILE_DIR");
        assert_int_equal(px_profile_dir(&rows[i].choice, false, out, &err), -1);
        assert_int_equal(err.code, PX_ENOENT);
        assert_string_equal(out, rows[i].path);
    }
}

static void a_profile_is_made_closed_to_others(void **state)
{
    (void)state;
    char root[] = "/tmp/px-test-XXXXXX", out[PX_PATH_SIZE], path[PX_PATH_SIZE + 32];
    assert_non_null(mkdtemp(root));
    char *ipython_dir = px_format("%s/a/b", root);
    const struct px_profile_choice choice = {.ipython_dir = ipython_dir, .profile = "new"};
    struct px_error err;
    const mode_t before = umask(0);
    assert_int_equal(px_profile_dir(&choice, true, out, &err), 0);
    umask(before);
    assert_int_equal(px_profile_dir(&choice, true, out, &err), 0); /* twice does no harm */
    static const char *const closed[] = {"security", "pid", "log"};
    for (size_t i = 0; i < PX_COUNT(closed); i++) {
        struct stat info;
        snprintf(path, sizeof path, "%s/%s", out, closed[i]);
        assert_int_equal(stat(path, &info), 0);
        assert_int_equal(info.st_mode & 0777, 0700);
    }
    static const char *const others_read[] = {"", "/..", "/../..", "/startup"};
    for (size_t i = 0; i < PX_COUNT(others_read); i++) {
        struct stat info;
        snprintf(path, sizeof path, "%s%s", out, others_read[i]);
        assert_int_equal(stat(path, &info), 0);
        assert_int_equal(info.st_mode & 0777, 0755);
    }
    free(ipython_dir);
    snprintf(path, sizeof path, "rm -r %s", root);
    assert_int_equal(system(path), 0);
    assert_int_equal(
        px_profile_dir(&(struct px_profile_choice){.profile_dir = "/dev/null/x"}, true, out, &err),
        -1);
    assert_non_null(strstr(err.text, "/dev/null/x"));
    assert_non_null(strstr(err.text, "--profile-dir"));
}

static void file_names(void **state)
{
    (void)state;
    char path[PX_PATH_SIZE];
    px_profile_connection_file("/p", "", PX_ROLE_CLIENT, path);
    assert_string_equal(path, "/p/security/ipcontroller-client.json");
    px_profile_connection_file("/p", "7", PX_ROLE_ENGINE, path);
    assert_string_equal(path, "/p/security/ipcontroller-7-engine.json");
    px_profile_cluster_file("/p", "", path);
    assert_string_equal(path, "/p/security/cluster-.json");
    setenv("IPP_CLUSTER_ID", "env", 1);
    assert_string_equal(px_profile_cluster_id(&(struct px_profile_choice){0}), "env");
    assert_string_equal(px_profile_cluster_id(&(struct px_profile_choice){.cluster_id = ""}), "");
}

static void files_have_limits(void **state)
{
    (void)state;
    struct px_buf buf = {0};
    struct px_error err;
    assert_int_equal(px_file_read("/proc/self/maps", 10, &buf, &err), -1);
    assert_int_equal(err.code, PX_ELIMIT);
    px_buf_fini(&buf);
    assert_int_equal(px_file_read("/tmp", 10, &buf, &err), -1);
    assert_int_equal(px_file_write("/nowhere/at/all", 0600, PX_SPAN("x"), &err), -1);
    assert_int_equal(err.code, PX_EIO);
    px_buf_fini(&buf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(preference),
        cmocka_unit_test(a_profile_is_made_closed_to_others),
        cmocka_unit_test(file_names),
        cmocka_unit_test(files_have_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
