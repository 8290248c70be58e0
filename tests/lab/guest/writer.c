/* SPDX-FileCopyrightText: 2026 virtops.libvirt contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The witness of a test guest: appends numbered records to one disk, each made durable before the
 * next one begins, so that a lost, torn or late write can be read back afterwards.
 *
 *   writer DISK "RATE BULK_KIB SPAN_MIB"
 *
 * /mnt/DISK/records.bin   record N stands at offset (N - 1) * 64; zeros, not yet written, follow the last one
 * /mnt/DISK/bulk.bin      BULK_KIB of fresh data per record, in a window of SPAN_MIB that is written over and over
 * /run/writer/DISK.ack    the newest record that fdatasync confirmed: whoever reads it here may rely on it
 * /run/writer/DISK.ctl    "RATE BULK_KIB SPAN_MIB", read before each record: RATE in records per second,
 *                         0 as fast as it can, negative to pause
 * /run/writer/DISK.err    why the writer gave up
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MAGIC "VOREC01\n"
#define CHUNK 65536

struct record {
    char magic[8];
    uint64_t seq;
    uint64_t boot_ns;  /* CLOCK_BOOTTIME just before the write; stands still while the virtual CPU is stopped */
    uint64_t real_ns;
    uint8_t boot_id[16];
    char disk[8];
    uint32_t reserved;
    uint32_t crc;      /* CRC-32 (zlib's) of the 60 bytes before it */
} __attribute__((packed));
_Static_assert(sizeof(struct record) == 64, "records are found by their offset");

struct setting {
    long rate, bulk_kib, span_mib;
};

static const char *disk;
static volatile sig_atomic_t stopping;

static void stop(int signal_number)
{
    (void)signal_number;
    stopping = 1;
}

static void die(const char *what)
{
    char path[64];
    int saved = errno;
    snprintf(path, sizeof path, "/run/writer/%s.err", disk);
    FILE *out = fopen(path, "w");
    if (out != NULL) {
        fprintf(out, "%s: %s\n", what, strerror(saved));
        fclose(out);
    }
    exit(1);
}

static uint32_t crc32(const void *data, size_t length)
{
    const uint8_t *byte = data;
    uint32_t crc = 0xffffffffU;
    while (length--) {
        crc ^= *byte++;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (0xedb88320U & -(crc & 1U));
    }
    return ~crc;
}

static uint64_t now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

static void read_boot_id(uint8_t id[16])
{
    char text[64] = "";
    FILE *in = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (in == NULL || fgets(text, sizeof text, in) == NULL)
        die("boot_id");
    fclose(in);
    int nibble = 0;
    memset(id, 0, 16);
    for (const char *c = text; *c != '\0' && nibble < 32; c++) {
        int value;
        if (*c >= '0' && *c <= '9')
            value = *c - '0';
        else if (*c >= 'a' && *c <= 'f')
            value = *c - 'a' + 10;
        else
            continue;
        id[nibble / 2] |= (uint8_t)(value << (nibble % 2 ? 0 : 4));
        nibble++;
    }
}

static int is_valid(const struct record *r, uint64_t seq)
{
    return memcmp(r->magic, MAGIC, 8) == 0 && r->seq == seq && r->crc == crc32(r, offsetof(struct record, crc));
}

/* Room for the next records, durable before it is used: a record is then overwritten in place and costs one flush
 * and no journal commit, which under TCG is most of the price. */
static void reserve(int fd, uint64_t seq)
{
    static const uint8_t zeros[CHUNK];
    if (seq * sizeof(struct record) % CHUNK != 0)
        return;
    if (pwrite(fd, zeros, CHUNK, (off_t)(seq * sizeof(struct record))) != CHUNK || fsync(fd) != 0)
        die("reserve");
}

/* The last whole record: what a crash left behind it was never confirmed, and is cut off. */
static uint64_t last_record(int fd)
{
    struct stat st;
    struct record r;
    if (fstat(fd, &st) != 0)
        die("fstat");
    uint64_t seq = (uint64_t)st.st_size / sizeof r;
    while (seq > 0) {
        if (pread(fd, &r, sizeof r, (off_t)((seq - 1) * sizeof r)) == (ssize_t)sizeof r && is_valid(&r, seq))
            break;
        seq--;
    }
    if (ftruncate(fd, (off_t)(seq * sizeof r)) != 0 ||
        ftruncate(fd, (off_t)((seq * sizeof r + CHUNK - 1) / CHUNK * CHUNK)) != 0 || fsync(fd) != 0)
        die("ftruncate");
    return seq;
}

static void read_setting(struct setting *s)
{
    char path[64], text[64];
    snprintf(path, sizeof path, "/run/writer/%s.ctl", disk);
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    if (got > 0) {
        struct setting wanted = {0, 0, 0};
        text[got] = '\0';
        if (sscanf(text, "%ld %ld %ld", &wanted.rate, &wanted.bulk_kib, &wanted.span_mib) >= 1)
            *s = wanted;
    }
}

/* Each 4 KiB page differs from all others, so that neither holes nor equal blocks hide a lost write. */
static void write_bulk(int fd, const struct setting *s, uint64_t *written)
{
    static uint64_t page[512], salt;
    uint64_t span = (uint64_t)(s->span_mib > 0 ? s->span_mib : 8) << 20;
    if (salt == 0)
        salt = now(CLOCK_REALTIME) | 1U;
    for (long kib = 0; kib < s->bulk_kib; kib += 4) {
        for (int i = 0; i < 512; i++) {
            salt ^= salt << 13;
            salt ^= salt >> 7;
            salt ^= salt << 17;
            page[i] = salt;
        }
        if (pwrite(fd, page, sizeof page, (off_t)(*written % span)) != (ssize_t)sizeof page)
            die("bulk write");
        *written += sizeof page;
    }
    if (fdatasync(fd) != 0)
        die("bulk fdatasync");
}

static void sleep_until(uint64_t when)
{
    struct timespec t = {(time_t)(when / 1000000000U), (long)(when % 1000000000U)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

int main(int argc, char **argv)
{
    char path[64];
    struct setting setting = {20, 0, 0};
    struct record r;
    uint64_t bulk_written = 0;

    if (argc < 2)
        return 2;
    disk = argv[1];
    if (argc > 2)
        sscanf(argv[2], "%ld %ld %ld", &setting.rate, &setting.bulk_kib, &setting.span_mib);
    signal(SIGTERM, stop);
    signal(SIGINT, stop);

    snprintf(path, sizeof path, "/mnt/%s/records.bin", disk);
    int fd = open(path, O_RDWR | O_CREAT, 0644);
    snprintf(path, sizeof path, "/mnt/%s/bulk.bin", disk);
    int bulk = open(path, O_RDWR | O_CREAT, 0644);
    snprintf(path, sizeof path, "/run/writer/%s.ack", disk);
    int ack = open(path, O_RDWR | O_CREAT, 0644);
    if (fd < 0 || bulk < 0 || ack < 0)
        die("open");

    memset(&r, 0, sizeof r);
    memcpy(r.magic, MAGIC, 8);
    strncpy(r.disk, disk, sizeof r.disk - 1);
    read_boot_id(r.boot_id);
    r.seq = last_record(fd);

    uint64_t due = now(CLOCK_MONOTONIC);
    while (!stopping) {
        read_setting(&setting);
        if (setting.rate < 0) {
            due = now(CLOCK_MONOTONIC) + 200000000U;
            sleep_until(due);
            continue;
        }
        if (setting.bulk_kib > 0)
            write_bulk(bulk, &setting, &bulk_written);
        reserve(fd, r.seq++);
        r.boot_ns = now(CLOCK_BOOTTIME);
        r.real_ns = now(CLOCK_REALTIME);
        r.crc = crc32(&r, offsetof(struct record, crc));
        if (pwrite(fd, &r, sizeof r, (off_t)((r.seq - 1) * sizeof r)) != (ssize_t)sizeof r)
            die("write");
        if (fdatasync(fd) != 0)
            die("fdatasync");
        if (pwrite(ack, &r, sizeof r, 0) != (ssize_t)sizeof r)
            die("ack");
        if (setting.rate > 0) {
            uint64_t current = now(CLOCK_MONOTONIC), period = 1000000000U / (uint64_t)setting.rate;
            due = due + period > current ? due + period : current;
            sleep_until(due);
        }
    }
    return 0;
}
