/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Numbers that mean the same everywhere: wildcards, lengths, protocols, verdicts, reasons. */
#ifndef LICAGENT_LAYOUT_NUMBERS_H
#define LICAGENT_LAYOUT_NUMBERS_H

#define LIC_ANY_ID 0
#define LIC_NO_ID 0xffffffffU /* of a subject: never the number of anything */
#define LIC_ANY_OWNER 0xffffffffU
#define LIC_NO_OWNER 0xfffffffeU /* of a subject: not known */
#define LIC_FAILSAFE_RESOURCE 0xffffffffU
#define LIC_FAMILY_RESOURCE \
	0xfffffffeU /* sockets of other families, where no resource names them */
#define LIC_SERVICE_CLASS 0
#define LIC_RULE_LICENSES 4
#define LIC_MAX_SHAPES 32
#define LIC_MAX_SCOPES 8
#define LIC_NAME_LEN 64
#define LIC_SCOPE_NAME_LEN 252
#define LIC_COMM_LEN 16

enum lic_protocol {
	LIC_PROTO_ICMP = 1,
	LIC_PROTO_TCP = 6,
	LIC_PROTO_UDP = 17,
	LIC_PROTO_SCTP = 132,
	LIC_PROTO_OTHER = 255,
};

enum lic_shape {
	LIC_SHAPE_GID = 1,
	LIC_SHAPE_UID = 2,
	LIC_SHAPE_SCOPE = 4,
	LIC_SHAPE_PATH = 8,
	LIC_SHAPE_DIGEST = 16,
};

enum lic_verdict {
	LIC_VERDICT_NONE = 0,
	LIC_VERDICT_ALLOW = 1,
	LIC_VERDICT_DENY = 2,
	LIC_VERDICT_SHADOW = 3, /* observe: let through, would have been denied */
	LIC_VERDICT_CUT = 4,    /* packet of an open socket dropped */
};

enum lic_reason {
	LIC_REASON_NONE = 0,
	LIC_REASON_LICENSED = 1,
	LIC_REASON_NO_RESOURCE = 2,
	LIC_REASON_FAILSAFE = 3,
	LIC_REASON_BREAK_GLASS = 4,
	LIC_REASON_NO_BINDING = 5,
	LIC_REASON_EXPIRED = 6,
	LIC_REASON_NOT_YET_VALID = 7,
	LIC_REASON_LEASE_LOST = 8,
	LIC_REASON_REVOKED = 9,
	LIC_REASON_CONDITION = 10,
	LIC_REASON_NO_SEAT = 11,
	LIC_REASON_QUOTA = 12,
	LIC_REASON_MALFORMED = 13,
};

#endif /* LICAGENT_LAYOUT_NUMBERS_H */
