/* What every test program needs: a check that tells where it failed, and an end in any case. */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <sys/bproc.h>

#define CHECK(what)                                                                                                  \
    do {                                                                                                             \
        errno = 0;                                                                                                   \
        if (!(what)) {                                                                                               \
            fprintf(stderr, "%s:%d: %s (errno %d: %s)\n", __FILE__, __LINE__, #what, errno, bproc_strerror(errno));  \
            exit(1);                                                                                                 \
        }                                                                                                            \
    } while (0)

/* The call fails so. */
#define FAILS(call, number) CHECK((call) == -1 && errno == (number))

static inline void begin(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(50);
}

/* Runs the rest in a child; its status. */
#define IN_CHILD(status, code)                                                                                       \
    do {                                                                                                             \
        pid_t child_ = fork();                                                                                       \
        CHECK(child_ >= 0);                                                                                          \
        if (child_ == 0) {                                                                                           \
            prctl(PR_SET_PDEATHSIG, SIGKILL);                                                                        \
            code;                                                                                                    \
            _exit(99);                                                                                               \
        }                                                                                                            \
        CHECK(waitpid(child_, &(status), 0) == child_);                                                              \
    } while (0)

#endif
