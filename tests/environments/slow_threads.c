/* Delays the begin of every thread, as a busy machine does. Preloaded into programs by LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

struct begin {
    void *(*run)(void *);
    void *argument;
};

static void *begin_late(void *given)
{
    struct begin begin = *(struct begin *)given;
    free(given);
    usleep(5000);
    return begin.run(begin.argument);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument)
{
    static int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (!create)
        create = dlsym(RTLD_NEXT, "pthread_create");
    struct begin *begin = malloc(sizeof *begin);
    begin->run = run;
    begin->argument = argument;
    return create(thread, attributes, begin_late, begin);
}
