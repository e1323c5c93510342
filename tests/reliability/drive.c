// Makes the folder $DRIVE_FOLDER behave as Google Drive may where Colab mounts it, for a program that is
// started with LD_PRELOAD: no links of either kind (Colab: errno 95), no locks, no modes, no fsync of
// folders, and a rename that takes what was there away first, so that for a moment there is neither.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int on_drive(int folder, const char *path) {
  const char *drive = getenv("DRIVE_FOLDER");
  char link[64], full[PATH_MAX] = "";
  if (!drive) return 0;
  if (path[0] != '/') {
    if (folder == AT_FDCWD) {
      if (!getcwd(full, sizeof full)) return 0;
    } else {
      snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
      ssize_t length = readlink(link, full, sizeof full - 1);
      if (length < 0) return 0;
      full[length] = 0;
    }
    strncat(full, "/", sizeof full - strlen(full) - 1);
  }
  strncat(full, path, sizeof full - strlen(full) - 1);
  return strncmp(full, drive, strlen(drive)) == 0;
}

static int opened_on_drive(int file) {
  char link[64], full[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, full, sizeof full - 1);
  if (length < 0) return 0;
  full[length] = 0;
  return on_drive(AT_FDCWD, full);
}

static int refused(int error) {
  errno = error;
  return -1;
}

#define REAL(name, kind) ((kind)dlsym(RTLD_NEXT, name))

int symlink(const char *to, const char *path) {
  if (on_drive(AT_FDCWD, path)) return refused(EOPNOTSUPP);
  return REAL("symlink", int (*)(const char *, const char *))(to, path);
}

int symlinkat(const char *to, int folder, const char *path) {
  if (on_drive(folder, path)) return refused(EOPNOTSUPP);
  return REAL("symlinkat", int (*)(const char *, int, const char *))(to, folder, path);
}

int link(const char *from, const char *path) {
  if (on_drive(AT_FDCWD, path)) return refused(EOPNOTSUPP);
  return REAL("link", int (*)(const char *, const char *))(from, path);
}

int linkat(int from_folder, const char *from, int folder, const char *path, int flags) {
  if (on_drive(folder, path)) return refused(EOPNOTSUPP);
  return REAL("linkat", int (*)(int, const char *, int, const char *, int))(
      from_folder, from, folder, path, flags);
}

int flock(int file, int operation) {
  if (opened_on_drive(file)) return refused(EOPNOTSUPP);
  return REAL("flock", int (*)(int, int))(file, operation);
}

int fcntl64(int file, int command, ...) {
  va_list rest;
  va_start(rest, command);
  void *argument = va_arg(rest, void *);
  va_end(rest);
  if ((command == F_SETLK || command == F_SETLKW) && opened_on_drive(file)) return refused(ENOLCK);
  return REAL("fcntl64", int (*)(int, int, ...))(file, command, argument);
}

int fcntl(int file, int command, ...) {
  va_list rest;
  va_start(rest, command);
  void *argument = va_arg(rest, void *);
  va_end(rest);
  return fcntl64(file, command, argument);
}

int chmod(const char *path, mode_t mode) {
  if (on_drive(AT_FDCWD, path)) return refused(EPERM);
  return REAL("chmod", int (*)(const char *, mode_t))(path, mode);
}

int fchmodat(int folder, const char *path, mode_t mode, int flags) {
  if (on_drive(folder, path)) return refused(EPERM);
  return REAL("fchmodat", int (*)(int, const char *, mode_t, int))(folder, path, mode, flags);
}

int fchmod(int file, mode_t mode) {
  if (opened_on_drive(file)) return refused(EPERM);
  return REAL("fchmod", int (*)(int, mode_t))(file, mode);
}

int fsync(int file) {
  struct stat what;
  if (!fstat(file, &what) && S_ISDIR(what.st_mode) && opened_on_drive(file)) return refused(EINVAL);
  return REAL("fsync", int (*)(int))(file);
}

int rename(const char *from, const char *to) {
  struct stat what;
  if (on_drive(AT_FDCWD, to) && !stat(to, &what) && S_ISREG(what.st_mode)) {
    unlink(to);
    usleep(20000);
  }
  return REAL("rename", int (*)(const char *, const char *))(from, to);
}
