// Rounds that go on until SIGTERM comes: then none depends on how fast anything is. The signal stays pending, so that no
// call is interrupted by it.
#ifndef TOLD_H
#define TOLD_H
#include <signal.h>

static inline void wait_to_be_told(void) {
    sigset_t term;
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    sigprocmask(SIG_BLOCK, &term, NULL);
}

static inline int is_told(void) {
    sigset_t pending;
    return sigpending(&pending) == 0 && sigismember(&pending, SIGTERM) == 1;
}

#endif
