/* SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A way into a test guest besides qemu-guest-agent, so that the agent can be stopped, hung and frozen by a test
 * and brought back: runs one shell command per line that comes in on a virtio port.
 *
 *   request   ID COMMAND\n
 *   reply     ID STATUS LENGTH\n and LENGTH bytes of output
 *
 * Written in C because a busybox loop that waits for a host to connect forks its `sleep` for ever, which a guest
 * under TCG pays dearly for.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char request[65536], output[1 << 20];

static void send_all(int fd, const char *data, size_t length)
{
    while (length > 0) {
        ssize_t sent = write(fd, data, length);
        if (sent <= 0) {
            usleep(20000);
            continue;
        }
        data += sent;
        length -= (size_t)sent;
    }
}

static void answer(int fd, char *line)
{
    char head[96];
    size_t length = 0;
    int status = 127;
    char *command = strchr(line, ' ');
    if (command == NULL)
        return;
    *command++ = '\0';
    FILE *shell = popen(command, "r");
    if (shell != NULL) {
        length = fread(output, 1, sizeof output, shell);
        int waited = pclose(shell);
        status = WIFEXITED(waited) ? WEXITSTATUS(waited) : 128 + WTERMSIG(waited);
    }
    snprintf(head, sizeof head, "%.32s %d %zu\n", line, status, length);
    send_all(fd, head, strlen(head));
    send_all(fd, output, length);
}

int main(int argc, char **argv)
{
    size_t held = 0;
    int fd = argc > 1 ? open(argv[1], O_RDWR) : -1;
    if (fd < 0)
        return 1;
    for (;;) {
        ssize_t got = read(fd, request + held, sizeof request - 1 - held);
        if (got <= 0) { /* nobody is connected on the host's side */
            held = 0;
            usleep(100000);
            continue;
        }
        held += (size_t)got;
        request[held] = '\0';
        char *end;
        while ((end = strchr(request, '\n')) != NULL) {
            *end = '\0';
            answer(fd, request);
            held -= (size_t)(end + 1 - request);
            memmove(request, end + 1, held + 1);
        }
        if (held == sizeof request - 1)
            held = 0;
    }
}
