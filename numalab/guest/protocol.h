/*
 * Frames between the laboratory and the first process of the guest, over one
 * virtio-serial port. numalab/machine/channel.py speaks the other side.
 *
 * A frame: u32 length of the payload, u32 channel, u8 type, payload; little
 * endian. A channel is one command or one file transfer; the host picks its
 * number. Channel 0 is the machine itself.
 */
#ifndef NUMALAB_PROTOCOL_H
#define NUMALAB_PROTOCOL_H

#define PROTOCOL_VERSION 1
#define PORT_NAME "org.numalab.0"
#define FRAME_HEADER 9
#define FRAME_MAX (256 * 1024)

/* host to guest */
#define HOST_RUN 'R'     /* flags\0cwd\0argc\0argv...\0env...\0 ; flags: 't' = on a terminal */
#define HOST_STDIN 'I'   /* bytes; an empty payload closes it */
#define HOST_KILL 'K'    /* decimal signal, to the command's process group */
#define HOST_RESUME 'A'  /* the command may go on after its mark */
#define HOST_GET 'G'     /* path */
#define HOST_PUT 'P'     /* path\0octal mode\0bytes; answered by one GUEST_STATUS */
#define HOST_APPEND 'Q'  /* path\0\0bytes: goes on where PUT stopped */
#define HOST_OFF 'O'     /* power off */

/* guest to host */
#define GUEST_HELLO 'Y'   /* decimal protocol version */
#define GUEST_BEAT 'H'    /* empty, every second */
#define GUEST_STARTED 'S' /* decimal pid */
#define GUEST_STDOUT '1'
#define GUEST_STDERR '2'
#define GUEST_MARK 'M'    /* name of the mark */
#define GUEST_EXIT 'X'    /* decimal wait status, as waitpid() gives it */
#define GUEST_DATA 'D'    /* bytes of a file */
#define GUEST_STATUS 'E'  /* decimal errno, 0 for success: ends GET, PUT, APPEND, or a RUN that did not start */

#endif
