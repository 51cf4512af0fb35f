// Parents and children: one case a word. Lines begin with who says them. At a point the process waits until the file of
// that name is there; meanwhile it, or another, may be moved.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *dir, *me = "P";
static volatile sig_atomic_t chld, usr1, usr1_from, usr1_code, chld_code, chld_status;

static void say(const char *text, long n) {
    char line[200];
    int len = snprintf(line, sizeof line, "%s: %s %ld\n", me, text, n);
    if (write(1, line, len) != len) _exit(99);
}

static void here(const char *name) {
    char path[500];
    struct stat st;
    int len = snprintf(path, sizeof path, "at %s%s %d\n", me, name, getpid());
    if (write(1, path, len) != len) _exit(98);
    snprintf(path, sizeof path, "%s/%s%s", dir, me, name);
    while (stat(path, &st)) usleep(1000);
}

// Until a point of another has been passed.
static void passed(const char *name) {
    char path[500];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    while (stat(path, &st)) usleep(1000);
}

static pid_t child(const char *name) {
    pid_t pid = fork();
    if (pid < 0) say("fork failed", errno);
    if (pid == 0) {
        me = name;
        prctl(PR_SET_PDEATHSIG, 0);
        alarm(60);
    }
    return pid;
}

static void on_signal(int sig, siginfo_t *info, void *context) {
    (void)context;
    if (sig == SIGCHLD) chld++, chld_code = info->si_code, chld_status = info->si_status;
    else usr1++, usr1_from = info->si_pid, usr1_code = info->si_code;
}

static void handle(int sig) {
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(sig, &action, 0);
}

static void told(pid_t pid, int options) {
    int status = 0;
    errno = 0;
    pid_t got = waitpid(pid, &status, options);
    say(got == pid ? "waited, status" : got < 0 ? "not waited, errno" : "nothing to wait for", got < 0 ? errno : status);
}

static void told_all(pid_t pid, int options) {
    siginfo_t info = {0};
    if (waitid(P_PID, pid, &info, options) < 0) return say("waitid errno", errno);
    say("waitid code", info.si_code), say("waitid status", info.si_status);
    say("waitid pid is right", info.si_pid == pid), say("waitid uid", info.si_uid);
}

// Until it has ended, and is not reaped.
static void ended(pid_t pid) {
    siginfo_t info;
    if (waitid(P_PID, pid, &info, WEXITED | WNOWAIT)) say("waitid errno", errno);
}

static void exits(void) {
    here("1");
    pid_t c = child("C");
    if (!c) here("1"), _exit(7);
    here("2");
    told(c, 0);
    here("3");
    told(c, 0);
}

static void zombie(void) {
    handle(SIGCHLD);
    pid_t c = child("C");
    if (!c) _exit(8);
    ended(c);
    while (!chld) usleep(1000);
    here("1");
    told_all(c, WEXITED | WNOWAIT);
    here("2");
    told(c, WNOHANG);
    told(c, WNOHANG);
    here("3");
    say("SIGCHLDs", chld);
}

static void before_fork(void) {
    for (int i = 0; i < 3; i++) {
        here(i == 0 ? "1" : i == 1 ? "2" : "3");
        pid_t c = child("C");
        if (!c) say("its parent is right", getppid() != 1), _exit(20 + i);
        told(c, 0);
    }
}

static void killed(int sig) {
    pid_t c = child("C");
    if (!c) {
        here("1");
        for (;;) pause();
    }
    here("1");
    told(c, WNOHANG);
    passed("C1");
    here("2");
    say("kill", kill(c, sig));
    told_all(c, WEXITED | WNOWAIT);
    told(c, 0);
    say("kill the dead", kill(c, 0) ? errno : 0);
}

static void terminated(void) { killed(SIGTERM); }
static void sigkilled(void) { killed(SIGKILL); }

static void kills_parent(void) {
    handle(SIGUSR1);
    pid_t p = getpid(), c = child("C");
    if (!c) {
        for (int i = 1; i < 4; i++) {
            here(i == 1 ? "1" : i == 2 ? "2" : "3");
            say("parent is right", getppid() == p);
            say("kill", kill(getppid(), SIGUSR1));
            // The next one would be the same as this, while this waits.
            usleep(300000);
        }
        _exit(3);
    }
    while (usr1 < 3) usleep(1000);
    say("signals", usr1), say("from the child", usr1_from == c), say("code", usr1_code);
    here("1");
    told(c, 0);
}

static void orphan(void) {
    pid_t c = child("C");
    if (!c) {
        pid_t p = getpid(), g = child("G");
        if (!g) {
            here("1");
            say("parent is right", getppid() == p);
            here("2");
            while (getppid() == p) usleep(1000);
            here("3");
            say("parent is another", getppid() != p);
            _exit(0);
        }
        here("1");
        passed("G2");
        _exit(5);
    }
    told(c, 0);
    here("1");
    told(c, 0);
}

static void subreaper(void) {
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    pid_t p = getpid(), c = child("C");
    if (!c) {
        pid_t g = child("G");
        if (!g) {
            here("1");
            while (getppid() != p) usleep(1000);
            say("the grandparent is the parent", 1);
            here("2");
            _exit(6);
        }
        here("1");
        _exit(5);
    }
    told(c, 0);
    here("1");
    int status = 0;
    pid_t got = waitpid(-1, &status, 0);
    say("another was reaped", got > 0 && got != c), say("status", status);
    told(-1, 0);
}

// Who is between the two runs on.
static void deep_orphan(void) {
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    pid_t m = child("M");
    if (!m) {
        here("1");
        pid_t c = child("C");
        if (!c) {
            here("1");
            pid_t g = child("G");
            if (!g) {
                usleep(200000);
                _exit(6);
            }
            _exit(5);
        }
        told(c, 0);
        passed("P2");
        _exit(4);
    }
    here("1");
    int status = 0;
    pid_t got = waitpid(-1, &status, 0);
    say("another was reaped", got > 0 && got != m), say("status", status);
    here("2");
    told(m, 0), told(-1, 0);
}

// It asks for orphans where it is.
static void late_subreaper(void) {
    here("1");
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    pid_t c = child("C");
    if (!c) {
        here("1");
        pid_t g = child("G");
        if (!g) {
            usleep(200000);
            _exit(6);
        }
        _exit(5);
    }
    here("2");
    told(c, 0);
    int status = 0;
    pid_t got = waitpid(-1, &status, 0);
    say("another was reaped", got > 0 && got != c), say("status", status);
    told(-1, 0);
}

// The parent of the orphan ends in the moment after the fork, many times.
static void orphan_at_once(void) {
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    for (int i = 0; i < 3; i++) {
        pid_t c = child("C");
        if (!c) {
            here(i == 0 ? "1" : i == 1 ? "2" : "3");
            pid_t g = child("G");
            if (!g) {
                usleep(200000);
                _exit(6 + i);
            }
            _exit(5);
        }
        here(i == 0 ? "1" : i == 1 ? "2" : "3");
        told(c, 0);
        int status = 0;
        pid_t got = waitpid(-1, &status, 0);
        say("another was reaped", got > 0 && got != c), say("status", status);
    }
    told(-1, 0);
}

static void parent_dies(void) {
    pid_t c = child("C");
    if (!c) {
        pid_t g = child("G");
        if (!g) {
            handle(SIGUSR1);
            prctl(PR_SET_PDEATHSIG, SIGUSR1);
            here("1");
            while (!usr1) usleep(1000);
            say("death signals", usr1);
            _exit(0);
        }
        here("1");
        // The other has set its signal when it is at its point.
        passed("G1");
        _exit(4);
    }
    told(c, 0);
}

static void stopped(void) {
    pid_t c = child("C");
    if (!c) {
        raise(SIGSTOP);
        say("goes on", 1);
        here("1");
        for (;;) pause();
    }
    told(c, WUNTRACED);
    here("1");
    told(c, WNOHANG | WUNTRACED);
    say("kill", kill(c, SIGCONT));
    told(c, WCONTINUED);
    passed("C1");
    here("2");
    say("kill", kill(c, SIGSTOP));
    told_all(c, WSTOPPED);
    here("3");
    say("kill", kill(c, SIGKILL));
    told(c, 0);
}

static void two(void) {
    pid_t c = child("C");
    if (!c) here("1"), _exit(1);
    pid_t d = child("D");
    if (!d) here("1"), _exit(2);
    here("1");
    told(d, 0), told(c, 0), told(-1, 0);
}

static void group(void) {
    pid_t c = child("C");
    if (!c) {
        setpgid(0, 0);
        pid_t g = child("G");
        if (!g) {
            here("1");
            for (;;) pause();
        }
        here("1");
        told(g, 0);
        _exit(9);
    }
    // Its stand-in, where this one is going to be, does not follow it from one group to another.
    passed("C1");
    here("1");
    while (getpgid(c) != c) usleep(1000);
    here("2");
    say("group", getpgid(c) == c);
    say("kill the group", kill(-c, SIGINT));
    told(c, 0);
}

static void session(void) {
    pid_t c = child("C");
    if (!c) {
        say("setsid", setsid() == getpid());
        here("1");
        say("sid", getsid(0) == getpid()), say("pgrp", getpgrp() == getpid());
        _exit(0);
    }
    while (getsid(c) != c) usleep(1000);
    here("1");
    say("session", getsid(c) == c), say("ours", getsid(0) == getpid());
    told(c, 0);
}

static void ignored(void) {
    signal(SIGCHLD, SIG_IGN);
    pid_t c = child("C");
    if (!c) here("1"), _exit(1);
    here("1");
    told(c, 0);
    here("2");
    told(-1, 0);
}

static void handled(void) {
    handle(SIGCHLD);
    pid_t c = child("C");
    if (!c) here("1"), _exit(11);
    here("1");
    while (!chld) usleep(1000);
    say("code", chld_code), say("status", chld_status);
    told(c, 0);
    here("2");
    say("SIGCHLDs", chld);
}

static void blocked(void) {
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, 0);
    handle(SIGCHLD);
    pid_t c = child("C");
    if (!c) _exit(12);
    ended(c);
    here("1");
    sigset_t now;
    for (int i = 0; i < 5000 && !(sigpending(&now), sigismember(&now, SIGCHLD)); i++) usleep(1000);
    sigprocmask(SIG_UNBLOCK, &set, 0);
    say("SIGCHLDs", chld), say("status", chld_status);
    told(c, 0);
    here("2");
    say("SIGCHLDs", chld);
}

static void executes(void) {
    pid_t c = child("C");
    if (!c) {
        here("1");
        execl("/bin/sh", "sh", "-c", "(exit 3); exit $?", NULL);
        _exit(126);
    }
    here("1");
    told(c, 0);
}

int main(int argc, char **argv) {
    static const struct { const char *name; void (*run)(void); } cases[] = {
        {"exits", exits}, {"zombie", zombie}, {"before_fork", before_fork}, {"terminated", terminated}, {"sigkilled", sigkilled},
        {"kills_parent", kills_parent}, {"orphan", orphan}, {"subreaper", subreaper}, {"orphan_at_once", orphan_at_once},
        {"deep_orphan", deep_orphan}, {"late_subreaper", late_subreaper},
        {"parent_dies", parent_dies},
        {"stopped", stopped}, {"two", two}, {"group", group}, {"session", session}, {"ignored", ignored},
        {"handled", handled}, {"blocked", blocked}, {"executes", executes}};
    if (argc < 3) return 2;
    dir = argv[2];
    alarm(60);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (!strcmp(argv[1], cases[i].name)) cases[i].run();
    return 42;
}
