//! Generic netlink gives every family a number when its module is loaded, another one at each load. This asks for it.
//!
//! Source: include/uapi/linux/genetlink.h, net/netlink/genetlink.c (`ctrl_getfamily`).

use crate::nl::{NlError, Socket, attr};

/// `GENL_ID_CTRL`: the controller, the only family with a fixed number.
const CONTROLLER: u16 = 16;
const CONTROLLER_VERSION: u8 = 2;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// The message type of the family `name`. The kernel refuses with ENOENT when no loaded module offers it.
pub fn resolve(socket: &mut Socket, name: &str) -> Result<u16, NlError> {
    let mut number = None;
    socket.request(
        CONTROLLER,
        0,
        |bytes| {
            bytes.extend_from_slice(&[CTRL_CMD_GETFAMILY, CONTROLLER_VERSION, 0, 0]);
            attr::put_str(bytes, CTRL_ATTR_FAMILY_NAME, name);
        },
        |_, payload| {
            let attributes = payload.get(4..).unwrap_or(&[]);
            number = attr::attributes(attributes)
                .find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID)
                .and_then(|(_, value)| attr::u16(value));
            Ok(())
        },
    )?;
    number.ok_or(NlError::Malformed("generic netlink family"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers_for_a_family_that_is_there_and_one_that_is_not() {
        let mut socket = Socket::open(netlink_sys::protocols::NETLINK_GENERIC).unwrap();
        assert_eq!(resolve(&mut socket, "nlctrl").unwrap(), CONTROLLER);
        assert_eq!(resolve(&mut socket, "no-such-family").unwrap_err().errno(), Some(libc::ENOENT));
    }
}
