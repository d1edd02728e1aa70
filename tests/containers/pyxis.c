/* A stand-in for pyxis, for tests: Slurm takes its options, and a task enters the directory that --container-image names.
 *
 * As with enroot, the mounts are the task's own, and the variables of the image (its /etc/environment) win over those of the
 * job. Unlike enroot there is no import and no user namespace: it needs root.
 *   gcc -shared -fPIC -o pyxis.so pyxis.c        plugstack.conf: required /.../pyxis.so
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <slurm/spank.h>

SPANK_PLUGIN(pyxis_stand_in, 1)

enum { IMAGE, MOUNTS, WORKDIR, NO_HOME, OPTIONS };
static char *given[OPTIONS];

static int take(int which, const char *value, int remote) {
    (void)remote;
    given[which] = strdup(value ? value : "yes");
    return 0;
}

static struct spank_option options[] = {
    {"container-image", "PATH", "stand-in: a root directory", 1, IMAGE, take},
    {"container-mounts", "SRC:DST[,SRC:DST]", "stand-in: bind mounts", 1, MOUNTS, take},
    {"container-workdir", "PATH", "stand-in: directory to start in", 1, WORKDIR, take},
    {"no-container-mount-home", NULL, "stand-in: no home, as always here", 0, NO_HOME, take},
    SPANK_OPTIONS_TABLE_END};

int slurm_spank_init(spank_t spank, int count, char **words) {
    (void)count, (void)words;
    for (int i = 0; options[i].name; i++)
        if (spank_option_register(spank, &options[i]) != ESPANK_SUCCESS) return -1;
    return 0;
}

static int failed(const char *what, const char *path) {
    slurm_error("pyxis stand-in: %s %s: %s", what, path, strerror(errno));
    return -1;
}

/* Bind a directory or file into the image. */
static int bind_in(const char *source, const char *inside) {
    char target[PATH_MAX];
    struct stat found;
    snprintf(target, sizeof target, "%s%s", given[IMAGE], inside);
    if (stat(source, &found)) return failed("mount", source);
    if (S_ISDIR(found.st_mode))
        mkdir(target, 0755);
    else
        close(open(target, O_CREAT | O_WRONLY, 0644));
    return mount(source, target, NULL, MS_BIND | MS_REC, NULL) ? failed("mount", source) : 0;
}

/* Variables of the image into the task's environment. */
static int take_environment(spank_t spank) {
    char line[4096];
    FILE *file = fopen("/etc/environment", "r");
    if (!file) return failed("read", "/etc/environment");
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        char *value = strchr(line, '=');
        if (!value) continue;
        *value++ = 0;
        spank_setenv(spank, line, value, 1);
    }
    fclose(file);
    return 0;
}

int slurm_spank_task_init(spank_t spank, int count, char **words) {
    static const char *system[] = {"/proc", "/sys", "/dev", "/tmp", "/etc/hosts", "/etc/resolv.conf"};
    (void)count, (void)words;
    if (!given[IMAGE]) return 0;
    if (unshare(CLONE_NEWNS) || mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL)) return failed("unshare", "mounts");
    for (size_t i = 0; i < sizeof system / sizeof *system; i++)
        if (bind_in(system[i], system[i])) return -1;
    for (char *rest = given[MOUNTS], *one; (one = strsep(&rest, ",")) != NULL;) {
        char *inside = strchr(one, ':');
        if (!inside) return failed("no : in", one);
        *inside++ = 0;
        if (bind_in(one, inside)) return -1;
    }
    if (chroot(given[IMAGE])) return failed("enter", given[IMAGE]);
    if (chdir(given[WORKDIR] ? given[WORKDIR] : "/")) return failed("enter", given[WORKDIR]);
    return take_environment(spank);
}
