// Sets everything that a process may do and is charged with, and looks whether it stays so. Words choose what.
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "../../vmadump/tests/programs/told.h"

static void fail(const char *what) {
    printf("fail %s errno %d\n", what, errno);
    fflush(stdout);
    _exit(1);
}

// Everything that must stay, as text.
static void looks(char *to, size_t room) {
    static const char *lines[] = {"Umask:", "Uid:", "Gid:", "Groups:", "CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:",
                                  "NoNewPrivs:", "Seccomp:", "Seccomp_filters:", "SigBlk:", "SigIgn:", "SigCgt:", "Cpus_allowed:"};
    char text[8192] = "", *at = to;
    FILE *f = fopen("/proc/self/status", "r");
    if (!f) fail("status");
    while (fgets(text, sizeof text, f))
        for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
            if (!strncmp(text, lines[i], strlen(lines[i]))) at += snprintf(at, to + room - at, "%s", text);
    fclose(f);
    for (int which = 0; which < RLIM_NLIMITS; which++) {
        struct rlimit limit;
        getrlimit(which, &limit);
        at += snprintf(at, to + room - at, "limit %d: %llx %llx\n", which, (long long)limit.rlim_cur, (long long)limit.rlim_max);
    }
    struct sched_param param;
    sched_getparam(0, &param);
    char cwd[4096] = "", exe[4096] = "";
    if (!getcwd(cwd, sizeof cwd)) fail("getcwd");
    if (readlink("/proc/self/exe", exe, sizeof exe - 1) < 0) strcpy(exe, "?");
    int reaper = 0, signal = 0;
    prctl(PR_GET_CHILD_SUBREAPER, &reaper);
    prctl(PR_GET_PDEATHSIG, &signal);
    snprintf(at, to + room - at, "nice %d policy %d priority %d cwd %s exe %s securebits %d dumpable %d slack %d reaper %d death %d\n",
             getpriority(PRIO_PROCESS, 0), sched_getscheduler(0), param.sched_priority, cwd, exe, prctl(PR_GET_SECUREBITS),
             prctl(PR_GET_DUMPABLE), prctl(PR_GET_TIMERSLACK), reaper, signal);
}

static void filter(void) {
    // getsid fails with ENOTTY, which nothing else does.
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getsid, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOTTY),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = {4, code};
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog)) fail("seccomp");
}

static int has(int argc, char **argv, const char *word) {
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], word)) return 1;
    return 0;
}

int main(int argc, char **argv) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    wait_to_be_told();
    umask(0137);
    struct rlimit files = {333, 444}, core = {0, 5000}, stack = {1 << 20, 2 << 20};
    if (setrlimit(RLIMIT_NOFILE, &files) || setrlimit(RLIMIT_CORE, &core) || setrlimit(RLIMIT_STACK, &stack)) fail("limits");
    if (has(argc, argv, "nice") && setpriority(PRIO_PROCESS, 0, 7)) fail("nice");
    if (has(argc, argv, "batch")) {
        struct sched_param none = {0};
        if (sched_setscheduler(0, SCHED_BATCH, &none)) fail("batch");
    }
    if (has(argc, argv, "fifo")) {
        struct sched_param one = {1};
        if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &one)) fail("fifo");
    }
    if (has(argc, argv, "processor")) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(0, &set);
        if (sched_setaffinity(0, sizeof set, &set)) fail("affinity");
    }
    if (has(argc, argv, "slack")) prctl(PR_SET_TIMERSLACK, 123456);
    if (has(argc, argv, "reaper")) prctl(PR_SET_CHILD_SUBREAPER, 1);
    if (has(argc, argv, "filter") && geteuid() == 0) filter();
    if (has(argc, argv, "user")) {
        gid_t groups[] = {100, 4242, 31337};
        if (setgroups(3, groups) || setresgid(65534, 65534, 65534)) fail("groups");
        if (has(argc, argv, "capabilities")) prctl(PR_SET_KEEPCAPS, 1);
        if (has(argc, argv, "bounding"))
            for (int cap = 0; cap <= CAP_LAST_CAP; cap++)
                if ((cap == CAP_CHOWN && has(argc, argv, "chown")) || cap == CAP_NET_RAW || cap >= CAP_SYS_BOOT)
                    if (cap != CAP_CHECKPOINT_RESTORE && prctl(PR_CAPBSET_DROP, cap)) break;
        if (has(argc, argv, "bits") && prctl(PR_SET_SECUREBITS, (has(argc, argv, "noroot") ? SECBIT_NOROOT : 0) | SECBIT_KEEP_CAPS | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED)) fail("bits");
        int effective = has(argc, argv, "effective") ? 0 : 65534, saved = has(argc, argv, "saved") ? 0 : 65534;
        if (setresuid(65534, effective, saved)) fail("user");
        if (has(argc, argv, "capabilities")) {
            struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
            struct __user_cap_data_struct data[2] = {{1 << CAP_NET_BIND_SERVICE, 1 << CAP_NET_BIND_SERVICE | 1 << CAP_CHOWN,
                                                      1 << CAP_NET_BIND_SERVICE}, {0}};
            if (syscall(SYS_capset, &head, data)) fail("capabilities");
            prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0);
        }
        prctl(PR_SET_DUMPABLE, 1);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    }
    if (has(argc, argv, "privileges")) prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (has(argc, argv, "filter") && geteuid() != 0) filter();
    static char first[16384], now[16384];
    looks(first, sizeof first);
    struct timespec then, here;
    clock_gettime(CLOCK_MONOTONIC, &then);
    for (int round = 0; !is_told(); round++) {
        printf("round %d\n", round);
        fflush(stdout);
        usleep(30000);
        looks(now, sizeof now);
        if (strcmp(first, now)) {
            size_t at = 0;
            while (first[at] && first[at] == now[at]) at++;
            while (at && first[at - 1] != '\n') at--;
            printf("was %.*s now %.*s: ", (int)strcspn(first + at, "\n"), first + at, (int)strcspn(now + at, "\n"), now + at);
            fail("something is other");
        }
        clock_gettime(CLOCK_MONOTONIC, &here);
        if (here.tv_sec < then.tv_sec || here.tv_sec > then.tv_sec + 20) fail("the clock");
        then = here;
        if (has(argc, argv, "filter") && (getsid(0) != -1 || errno != ENOTTY)) fail("the filter");
    }
    puts("done");
    fflush(stdout);
    return 42;
}
