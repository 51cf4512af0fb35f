// A process goes to a node, where it has a program that nobody else has, and executes that elsewhere.
//
//   carried DIR NODE           NODE: where; DIR: where it may mount something
//   carried DIR NODE NODE...   on all of these at once
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/bproc.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define CHECK(what) \
    do { \
        if (!(what)) { \
            dprintf(1, "line %d: %s, errno %d (%s)\n", __LINE__, #what, errno, bproc_strerror(errno)); \
            _exit(1); \
        } \
    } while (0)

static void handler(int signal) { (void)signal; }

// As the program: what it has kept, and what not.
static int there(char **argv) {
    struct sigaction action;
    struct itimerspec left;
    char name[16] = "", cwd[400];
    int death = 0;
    CHECK(bproc_currnode() == atoi(argv[2]) && getpid() == atoi(argv[3]) && getppid() == atoi(argv[4]));
    CHECK(!strcmp(getenv("WORD"), "kept") && !getenv("HOME"));
    for (int i = 3; i < 100; i++) CHECK(fcntl(i, F_GETFD) < 0);
    CHECK(!sigaction(SIGUSR1, NULL, &action) && action.sa_handler == SIG_IGN);
    CHECK(!sigaction(SIGUSR2, NULL, &action) && action.sa_handler == SIG_DFL);
    // The C library knows of no timer; the kernel of none either.
    CHECK(syscall(SYS_timer_gettime, 0, &left) < 0 && errno == EINVAL);
    CHECK(!prctl(PR_GET_NAME, name) && !strcmp(name, "program"));
    CHECK(!prctl(PR_GET_PDEATHSIG, &death) && death == SIGKILL);
    CHECK(getcwd(cwd, sizeof cwd) && !strcmp(cwd, "/usr"));
    puts("there");
    return 42;
}

static int node(const char *word) { return strcmp(word, "master") ? atoi(word) : BPROC_NODE_MASTER; }

// As one of many. The arguments are the nodes by rank.
static int ranked(int argc, char **argv) {
    int rank = atoi(getenv("BPROC_RANK") ? getenv("BPROC_RANK") : "99"), death = 0;
    CHECK(rank < argc - 2 && strlen(getenv("BPROC_RANK")) == 7);
    CHECK(bproc_currnode() == node(argv[2 + rank]) && !strcmp(getenv("WORD"), "kept"));
    CHECK(!prctl(PR_GET_PDEATHSIG, &death) && !death);
    return 100 + rank;
}

// From where it is to all of them. They end with their ranks.
static int everywhere(char *program, int n, char **words, char **entries) {
    int nodes[20], pids[20], status;
    char *arguments[30] = {program, "ranked"};
    for (int i = 0; i < n; i++) nodes[i] = node(words[i]), arguments[2 + i] = words[i];
    CHECK(bproc_vexecmove(n, nodes, pids, "/nowhere/at/all", arguments, entries) == -1 && errno == ENOENT && pids[0] == -ENOENT);
    CHECK(bproc_vexecmove(n, nodes, pids, program, arguments, entries) == n);
    for (int i = 0; i < n; i++) {
        CHECK(pids[i] > 0 && waitpid(pids[i], &status, 0) == pids[i]);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 100 + i);
    }
    puts("everywhere");
    return 42;
}

int main(int argc, char **argv) {
    if (argc == 5 && !strcmp(argv[1], "there")) return there(argv);
    if (argc > 2 && !strcmp(argv[1], "ranked")) return ranked(argc, argv);
    if (argc < 3) return 2;
    char program[400], word[] = "there", me[20], parent[20], link[300];
    int to = node(argv[2]);
    CHECK(bproc_move(0) == 0);
    CHECK(!unshare(CLONE_NEWNS) && !mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL));
    CHECK(!mount("none", argv[1], "tmpfs", 0, NULL));
    snprintf(program, sizeof program, "%s/program", argv[1]);
    int from = open("/proc/self/exe", O_RDONLY), into = open(program, O_WRONLY | O_CREAT, 0755);
    char part[4096];
    for (ssize_t n; (n = read(from, part, sizeof part)) > 0;) CHECK(write(into, part, n) == n);
    CHECK(!close(from) && !close(into) && !chdir("/usr"));
    timer_t timer;
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    CHECK(!timer_create(CLOCK_MONOTONIC, &none, &timer));
    CHECK(!prctl(PR_SET_PDEATHSIG, SIGKILL));
    signal(SIGUSR1, SIG_IGN);
    signal(SIGUSR2, handler);
    snprintf(me, sizeof me, "%d", getpid());
    snprintf(parent, sizeof parent, "%d", getppid());
    snprintf(link, sizeof link, "BPROC_SOCKET=%s", getenv("BPROC_SOCKET"));
    char where[20];
    snprintf(where, sizeof where, "%d", to);
    char *arguments[] = {program, word, where, me, parent, NULL};
    char *entries[] = {"WORD=kept", "BPROC_RANK=XXXXXXX", link, NULL};
    if (argc > 3) return everywhere(program, argc - 2, argv + 2, entries);
    // Nothing is lost when it is not there.
    CHECK(bproc_execmove(to, "/nowhere/at/all", arguments, entries) == -1 && errno == ENOENT);
    bproc_execmove(to, program, arguments, entries);
    CHECK(!"it is executed");
    return 1;
}
