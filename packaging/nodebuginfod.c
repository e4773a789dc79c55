/* A libdebuginfod that finds nothing, in place of the one in drgn's wheel, which brings libcurl, OpenSSL 1.1.1, Kerberos, LDAP
 * and more. crashd fetches debug information itself (crashctl debug, [analysis] debuginfod); the sandbox has no network.
 * elfutils has the same as --enable-libdebuginfod=dummy, but only as a part of its whole build. */
#include <errno.h>
#include <stddef.h>

static int client;

void *debuginfod_begin(void) { return &client; }
void debuginfod_end(void *unused) { (void)unused; }
int debuginfod_find_debuginfo(void *c, const unsigned char *id, int length, char **path)
{
	(void)c, (void)id, (void)length, (void)path;
	return -ENOSYS; /* as without DEBUGINFOD_URLS */
}
int debuginfod_find_executable(void *c, const unsigned char *id, int length, char **path)
{
	return debuginfod_find_debuginfo(c, id, length, path);
}
void debuginfod_set_progressfn(void *c, void *function) { (void)c, (void)function; }
void debuginfod_set_user_data(void *c, void *data) { (void)c, (void)data; }
void *debuginfod_get_user_data(void *c) { (void)c; return NULL; }
const char *debuginfod_get_url(void *c) { (void)c; return NULL; }
