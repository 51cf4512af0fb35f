/* Tells of each change of the cluster that its notifier tells of, with the permissions of node NODE; ends when these are 0.
 * usage: notified NODE */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/bproc.h>

static int failed(const char *what)
{
    printf("%s: %s\n", what, bproc_strerror(errno));
    return 1;
}

int main(int count, char **words)
{
    struct bproc_node_set_t set = BPROC_EMPTY_NODESET;
    int node = count > 1 ? atoi(words[1]) : 0, fd = bproc_notifier();
    if (fd < 0)
        return failed("notifier");
    puts("watching");
    for (;;) {
        struct pollfd poller = {fd, POLLIN, 0};
        struct bproc_node_info_t info;
        fflush(stdout);
        if (poll(&poller, 1, -1) != 1)
            return failed("poll");
        if (bproc_nodelist_(&set, fd) < 0)
            return failed("nodelist");
        if (bproc_nodeinfo(node, &info) != 0)
            return failed("nodeinfo");
        printf("mode %o\n", info.mode);
        if (info.mode == 0)
            return 0;
    }
}
