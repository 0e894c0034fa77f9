/* Preloaded by the soak: ends the process before, or in the middle of, the k-th call that changes a file of a folder.

   soak_arm(folder, part, k, signal, torn, report): counts calls whose path is below `folder` and contains `part`, in the
   process that calls it (not in those it forks). k = 0 only counts. Each counted call is a line `CALL PATH` in the open file
   `report`; with k > 0 only the one that fires is. `torn` in 0..255: that share of a torn write's bytes is written first. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[4096], part[256];
static atomic_long calls;
static long fatal;
static int number, share, out = -1;
static pid_t armed;

void soak_arm(const char *in, const char *with, long k, int signal_number, int torn, int report) {
  snprintf(folder, sizeof folder, "%s", in);
  snprintf(part, sizeof part, "%s", with);
  fatal = k, number = signal_number, share = torn, out = report;
  atomic_store(&calls, 0);
  armed = getpid();
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Whether this is the fatal call; reports it. */
static int due(const char *call, const char *path) {
  if (armed != getpid() || strncmp(path, folder, strlen(folder)) || !strstr(path + strlen(folder), part)) return 0;
  long now = atomic_fetch_add(&calls, 1) + 1;
  if (fatal && now != fatal) return 0;
  char line[5000];
  int length = snprintf(line, sizeof line, "%s %s\n", call, path + strlen(folder));
  REAL(write)(out, line, length);
  return fatal != 0;
}

/* For calls on paths, which may be relative to the open folder `base`. */
static void at(const char *call, int base, const char *path) {
  char link[64], whole[8192];
  if (!armed) return;
  if (path[0] != '/') {
    snprintf(link, sizeof link, base == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", base);
    ssize_t length = readlink(link, whole, 4096);
    if (length <= 0) return;
    snprintf(whole + length, sizeof whole - length, "/%s", path);
    path = whole;
  }
  if (due(call, path)) kill(getpid(), number);
}

/* For calls on open files; returns the bytes of a torn write, or -1 if this one is not fatal. */
static ssize_t at_file(const char *call, int file, size_t bytes) {
  char link[64], path[4096];
  if (!armed || file == out) return -1;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0 || path[0] != '/') return -1;
  path[length] = 0;
  if (!due(call, path)) return -1;
  if (!bytes || number != SIGKILL) kill(getpid(), number);
  return number == SIGKILL ? (ssize_t)(bytes * share / 256) : -1;
}

#define FATAL() kill(getpid(), number)

ssize_t write(int file, const void *data, size_t size) {
  ssize_t torn = at_file("write", file, size);
  if (torn >= 0) REAL(write)(file, data, torn), FATAL();
  return REAL(write)(file, data, size);
}
ssize_t pwrite(int file, const void *data, size_t size, off_t offset) {
  ssize_t torn = at_file("write", file, size);
  if (torn >= 0) REAL(pwrite)(file, data, torn, offset), FATAL();
  return REAL(pwrite)(file, data, size, offset);
}
ssize_t pwrite64(int file, const void *data, size_t size, off64_t offset) {
  ssize_t torn = at_file("write", file, size);
  if (torn >= 0) REAL(pwrite64)(file, data, torn, offset), FATAL();
  return REAL(pwrite64)(file, data, size, offset);
}
ssize_t writev(int file, const struct iovec *data, int count) {
  ssize_t torn = at_file("write", file, count ? data[0].iov_len : 0);
  if (torn >= 0) REAL(write)(file, data[0].iov_base, torn), FATAL();
  return REAL(writev)(file, data, count);
}
int fsync(int file) {
  at_file("fsync", file, 0);
  return REAL(fsync)(file);
}
int ftruncate(int file, off_t size) {
  at_file("truncate", file, 0);
  return REAL(ftruncate)(file, size);
}
int ftruncate64(int file, off64_t size) {
  at_file("truncate", file, 0);
  return REAL(ftruncate64)(file, size);
}
int rename(const char *from, const char *to) {
  at("rename", AT_FDCWD, to);
  return REAL(rename)(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
  at("rename", b, to);
  return REAL(renameat)(a, from, b, to);
}
int link(const char *from, const char *to) {
  at("link", AT_FDCWD, to);
  return REAL(link)(from, to);
}
int unlink(const char *path) {
  at("unlink", AT_FDCWD, path);
  return REAL(unlink)(path);
}
int unlinkat(int base, const char *path, int flags) {
  at("unlink", base, path);
  return REAL(unlinkat)(base, path, flags);
}
int mkdir(const char *path, mode_t mode) {
  at("mkdir", AT_FDCWD, path);
  return REAL(mkdir)(path, mode);
}
int rmdir(const char *path) {
  at("rmdir", AT_FDCWD, path);
  return REAL(rmdir)(path);
}
int chmod(const char *path, mode_t mode) {
  at("chmod", AT_FDCWD, path);
  return REAL(chmod)(path, mode);
}

#define OPENS(name)                                                                                   \
  int name(const char *path, int flags, ...) {                                                        \
    va_list rest;                                                                                     \
    va_start(rest, flags);                                                                            \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                           \
    va_end(rest);                                                                                     \
    if (flags & (O_CREAT | O_TRUNC)) at("open", AT_FDCWD, path);                                                \
    return REAL(name)(path, flags, mode);                                                             \
  }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                                                                \
  int name(int base, const char *path, int flags, ...) {                                              \
    va_list rest;                                                                                     \
    va_start(rest, flags);                                                                            \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                           \
    va_end(rest);                                                                                     \
    if (flags & (O_CREAT | O_TRUNC)) at("open", base, path);                                                \
    return REAL(name)(base, path, flags, mode);                                                       \
  }
OPENS_AT(openat)
OPENS_AT(openat64)
