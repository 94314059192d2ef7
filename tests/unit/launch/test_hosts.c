/* SPDX-License-Identifier: BSD-3-Clause */
/* Which host gets how many engines: the forms of --host and --hostfile, and the shares. */
#include "../test.h"
#include "launch/launch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* "a 2, b 1" */
static void show(const struct px_host *hosts, char *out, size_t size)
{
    out[0] = 0;
    for (const struct px_host *host = hosts; host && host->name; host++)
        snprintf(out + strlen(out), size - strlen(out), "%s%s %d", host == hosts ? "" : ", ",
                 host->name, host->count);
}

static void shares(void **state)
{
    static const struct {
        const char *list;
        int n;
        const char *wanted; /* NULL: refused */
    } rows[] = {
        {"a", -1, "a 1"},
        {"a,b", -1, "a 1, b 1"},
        {"a:2,b", -1, "a 2, b 1"},
        {"a,b,c", 8, "a 3, b 3, c 2"},
        {"a:2,b", 5, "a 2, b 3"},
        {"a:4,b:4", 6, "a 4, b 2"},
        {"a:4,b:4", 3, "a 3, b 0"},
        {"a,b", 1, "a 1, b 0"},
        {"me@a:2", -1, "me@a 2"},
        {"::1,[::1]:3", -1, "::1 1, ::1 3"},
        {"fe80::1%eth0", 2, "fe80::1%eth0 2"},
        {"a:4", 5, NULL},
        {"a:4,b", 3, NULL},
        {"a:", -1, NULL},
        {"a:0", -1, NULL},
        {"a:-1", -1, NULL},
        {"a:2x", -1, NULL},
        {"a:99999999999", -1, NULL},
        {"-a", -1, NULL},
        {"a b", -1, NULL},
        {"a;b", -1, NULL},
        {"$(b)", -1, NULL},
        {"[]", -1, NULL},
        {":2", -1, NULL},
    };
    (void)state;
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_host *hosts = NULL;
        struct px_error err = {0};
        char shown[200];
        int n = px_hosts_add(&hosts, rows[i].list, &err);
        if (n == 0)
            n = px_hosts_share(hosts, rows[i].n, &err);
        show(hosts, shown, sizeof shown);
        if (!rows[i].wanted && n >= 0)
            fail_msg("%s was taken: %s", rows[i].list, shown);
        if (rows[i].wanted && (n < 0 || strcmp(shown, rows[i].wanted) != 0))
            fail_msg("%s: %s, not %s (%s)", rows[i].list, shown, rows[i].wanted, err.text);
        assert_true(n >= 0 || err.text[0]);
        px_hosts_fini(hosts);
    }
}

static void file(void **state)
{
    static const char text[] =
        "# a list\n\n  node1 slots=4 \nme@node2:2 # the second\r\nnode3 7\nnode4";
    char path[] = "/tmp/px-hosts-XXXXXX", shown[200];
    struct px_host *hosts = NULL;
    struct px_error err;
    (void)state;
    const int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, text, sizeof text - 1) == sizeof text - 1);
    close(fd);
    assert_int_equal(px_hosts_read(&hosts, path, &err), 0);
    show(hosts, shown, sizeof shown);
    assert_string_equal(shown, "node1 4, me@node2 2, node3 7, node4 0");
    px_hosts_fini(hosts);
    hosts = NULL;
    assert_int_equal(truncate(path, 0), 0);
    assert_int_equal(px_hosts_read(&hosts, path, &err), 0);
    assert_null(hosts);
    unlink(path);
    assert_int_equal(px_hosts_read(&hosts, path, &err), -1);
    assert_int_equal(err.code, PX_ENOENT);
}

static void classes(void **state)
{
    static const struct {
        const char *name;
        const struct px_launcher_ops *ops;
    } rows[] = {
        {"local", &px_local_launcher},
        {"SSH", &px_ssh_launcher},
        {"mpi", &px_mpi_launcher},
        {"MPIEngineSetLauncher", &px_mpi_launcher},
        {"ipyparallel.cluster.launcher.SlurmEngineSetLauncher", &px_slurm_launcher},
        {"LocalControllerLauncher", &px_local_launcher},
        {"PBS", &px_pbs_launcher},
        {"pbsengineset", &px_pbs_launcher},
        {"ipyparallel.cluster.launcher.SGEEngineSetLauncher", &px_sge_launcher},
        {"lsf", NULL},
        {"HTCondor", &px_condor_launcher},
        {"ipyparallel.cluster.launcher.HTCondorEngineSetLauncher", &px_condor_launcher},
        {"LSF", NULL},
        {"sshproxy", NULL},
        {"slurm2", NULL},
        {"", NULL},
    };
    (void)state;
    for (size_t i = 0; i < PX_COUNT(rows); i++)
        assert_ptr_equal(px_launcher_find(rows[i].name), rows[i].ops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shares),
        cmocka_unit_test(file),
        cmocka_unit_test(classes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
