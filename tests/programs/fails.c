// A child whose execve fails, or whose bproc_rexec and bproc_execmove to NODE, while its parent waits: the child runs on, takes
// a signal and exits with 5, of which alone the parent is told. `fails NODE PLACE CHILD [FILE]`: the parent goes to PLACE, the
// child stays on the master (0), is forked there (1), or goes from there to the master (2) or to node N (10 + N). NODE is -9 for
// natively.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/bproc.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NATIVELY = -9 };

static volatile sig_atomic_t chld, usr1;

static void on_signal(int sig) {
    if (sig == SIGCHLD) chld++;
    else usr1++;
}

static void say(const char *text, long n) {
    char line[200];
    int len = snprintf(line, sizeof line, "%s %ld\n", text, n);
    if (write(1, line, len) != len) _exit(99);
}

static void go(int place) {
    if (place != NATIVELY && bproc_move(place)) say("move", errno), _exit(98);
}

static int executes(int node, const char *file, int way) {
    char *args[] = {"no program", 0}, *env[] = {0};
    if (node == NATIVELY) return execve(file, args, env);
    return way ? bproc_execmove(node, file, args, env) : bproc_rexec(node, file, args, env);
}

static int child(int node, const char *file) {
    pid_t parent = getppid();
    for (int way = 0; way < 2; way++) {
        errno = 0;
        say("execution", executes(node, file, way));
        say("for", errno);
    }
    say("parent is there", kill(parent, 0));
    if (kill(parent, SIGUSR1)) say("signal", errno);
    // The answer.
    for (int i = 0; !usr1 && i < 5000; i++) usleep(1000);
    say("signals", usr1);
    int own = fork(), status = 0;
    if (!own) _exit(getppid() == 1);
    waitpid(own, &status, 0);
    say("child of its own", status);
    return 5;
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    int node = atoi(argv[1]), place = atoi(argv[2]), how = atoi(argv[3]), status = -1;
    const char *file = argc > 4 ? argv[4] : "/does/not/exist";
    signal(SIGCHLD, on_signal), signal(SIGUSR1, on_signal);
    if (how) go(place);
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set, 0);
    pid_t pid = fork();
    if (!pid) {
        if (how > 1 && node != NATIVELY) go(how == 2 ? -1 : how - 10);
        // The parent is where it is going to be.
        int sig;
        sigwait(&set, &sig);
        return child(node, file);
    }
    if (!how) go(place);
    if (kill(pid, SIGUSR2)) say("start", errno);
    for (int i = 0; !usr1 && i < 5000; i++) usleep(1000);
    say("signals of the child", usr1);
    say("has it ended", waitpid(pid, &status, WNOHANG)), say("children that changed", chld);
    if (kill(pid, SIGUSR1)) say("answer", errno);
    say("waited", waitpid(pid, &status, 0) == pid), say("status", status);
    say("children that changed", chld);
    return 0;
}
