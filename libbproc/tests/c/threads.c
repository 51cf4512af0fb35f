/* Calls of several threads against a stand-in for the agent: the reboot of node 1 is answered when somebody has it reboot
   without waiting. */
#include "check.h"

#include <pthread.h>

static void *reboots(void *nothing)
{
    CHECK(bproc_nodereboot(1) == 0);
    return nothing;
}

static void *moves(void *nothing)
{
    for (int i = 0; i < 50; i++)
        CHECK(bproc_move(1) == 0 && bproc_currnode() == -1);
    return nothing;
}

int main(void)
{
    int status;
    char text[16];
    pthread_t in_call, moving[3];

    begin();
    CHECK(pthread_create(&in_call, NULL, reboots, NULL) == 0);
    /* Answered when somebody waits for the reboot. */
    CHECK(bproc_getnodeattr(1, (char *)"bproc.waiting", text, sizeof(text)) == 3);

    /* It does not hang, and does not pull the rug from under that call; others go on. */
    FAILS(bproc_move(1), EBUSY);
    CHECK(bproc_currnode() == -1);
    /* A process that was forked meanwhile is in no call. */
    IN_CHILD(status, {
        CHECK(bproc_move(1) == 0);
        CHECK(bproc_nodereboot_async(1) == 0);
        _exit(3);
    });
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 3);
    CHECK(pthread_join(in_call, NULL) == 0);

    /* Several at once go one after another. */
    for (int i = 0; i < 3; i++)
        CHECK(pthread_create(&moving[i], NULL, moves, NULL) == 0);
    for (int i = 0; i < 3; i++)
        CHECK(pthread_join(moving[i], NULL) == 0);
    CHECK(bproc_move(1) == 0);
    return 0;
}
