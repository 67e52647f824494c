//! The socket against the one family that every kernel has and everybody may ask: generic netlink's controller.

use netlink_sys::protocols::NETLINK_GENERIC;

use super::*;

/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, `CTRL_ATTR_FAMILY_NAME`.
const CONTROLLER: u16 = 16;
const GET_FAMILY: [u8; 4] = [3, 2, 0, 0];
const FAMILY_NAME: u16 = 2;
/// A message type that no family has: refused with ENOENT.
const NOBODY: u16 = 1023;
/// `NLMSG_NOOP`: accepted in silence.
const NOOP: u16 = 1;

fn socket() -> Socket {
    Socket::open(NETLINK_GENERIC).unwrap()
}

fn family_names(socket: &mut Socket) -> Result<Vec<String>, NlError> {
    socket.dump(
        CONTROLLER,
        0,
        |bytes| bytes.extend_from_slice(&GET_FAMILY),
        |names: &mut Vec<String>, _, payload| {
            let name = attr::attributes(&payload[4..]).find(|(kind, _)| *kind == FAMILY_NAME);
            names.push(attr::text(name.ok_or(NlError::Malformed("name"))?.1).to_owned());
            Ok(())
        },
    )
}

/// Twice over the limit of one sendmsg, every third request refused.
#[test]
fn refusals_carry_the_index_in_the_batch() {
    let mut socket = socket();
    for _ in 0..2 {
        let mut batch = Batch::new();
        for index in 0..2 * BATCH_MESSAGES + 100 {
            batch.push(if index % 3 == 0 { NOBODY } else { NOOP }, 0, |bytes| bytes.extend_from_slice(&[0; 4]));
        }
        let refused = socket.send_batch(&mut batch).unwrap();
        let wanted: Vec<_> = (0..batch.len()).step_by(3).map(|index| (index, libc::ENOENT)).collect();
        assert_eq!(refused.into_iter().map(|(index, r)| (index, r.errno)).collect::<Vec<_>>(), wanted);
    }
}

#[test]
fn a_batch_may_be_refused_as_a_whole_without_losing_answers() {
    let mut batch = Batch::new();
    for _ in 0..3 * BATCH_MESSAGES {
        batch.push(NOBODY, 0, |bytes| bytes.extend_from_slice(&[0; 400]));
    }
    assert_eq!(socket().send_batch(&mut batch).unwrap().len(), batch.len());
}

#[test]
fn nothing_is_sent_for_an_empty_batch() {
    assert_eq!(socket().send_batch(&mut Batch::new()).unwrap(), []);
    assert_eq!(socket().send_whole(&mut Batch::new()).unwrap(), []);
}

#[test]
fn a_dump_is_read_to_its_end_whatever_the_buffer() {
    let all = family_names(&mut socket()).unwrap();
    assert!(all.iter().any(|name| name == "nlctrl"), "{all:?}");
    let mut small = Socket::open_with(NETLINK_GENERIC, 8 * 1024).unwrap();
    assert_eq!(family_names(&mut small).unwrap(), all);
}

/// What one exchange leaves unread must not answer the next.
#[test]
fn a_failed_exchange_does_not_spoil_the_next() {
    let mut socket = socket();
    let stop = |_: &mut (), _, _: &[u8]| Err(NlError::Malformed("enough"));
    let outcome = socket.dump(CONTROLLER, 0, |bytes| bytes.extend_from_slice(&GET_FAMILY), stop);
    assert!(matches!(outcome, Err(NlError::Malformed("enough"))));
    let outcome = socket.dump(NOBODY, 0, |bytes| bytes.extend_from_slice(&[0; 4]), |_: &mut (), _, _| Ok(()));
    assert_eq!(outcome.unwrap_err().errno(), Some(libc::ENOENT));
    let outcome = socket.request(NOBODY, NLM_F_ACK, |bytes| bytes.extend_from_slice(&[0; 4]), |_, _| Ok(()));
    assert_eq!(outcome.unwrap_err().errno(), Some(libc::ENOENT));
    assert!(!family_names(&mut socket).unwrap().is_empty());
}

/// The kernel's own words arrive: a dump of a family that has no such command.
#[test]
fn a_refusal_keeps_the_extended_text() {
    let body = |bytes: &mut Vec<u8>| {
        bytes.extend_from_slice(&GET_FAMILY);
        // CTRL_ATTR_FAMILY_ID is u16; one byte is too few.
        attr::put(bytes, 1, &[0]);
    };
    match socket().request(CONTROLLER, 0, body, |_, _| Ok(())) {
        Err(NlError::Refused(refusal)) => assert!(!refusal.text.is_empty(), "{refusal}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn datagrams_split_into_messages_or_fail() {
    let mut batch = Batch::new();
    batch.push(7, 0, |bytes| bytes.extend_from_slice(b"abcde"));
    batch.push(8, 0, |_| {});
    let good: Vec<_> = Messages(&batch.bytes).map(|m| m.map(|m| (m.message_type, m.payload.len())).unwrap()).collect();
    assert_eq!(good, [(7, 5), (8, 0)]);
    let cut = &batch.bytes[..HEADER + 3];
    assert!(Messages(cut).next().unwrap().is_err());
    assert!(Messages(&[0; HEADER]).next().unwrap().is_err());
    assert!(Messages(&batch.bytes[..HEADER - 1]).next().is_none());
}

#[test]
fn error_messages_of_any_length_never_panic() {
    let mut bytes = (-libc::EPERM).to_ne_bytes().to_vec();
    bytes.extend_from_slice(&u32::MAX.to_ne_bytes());
    bytes.resize(64, 0xff);
    for flags in [0, NLM_F_ACK_TLVS, NLM_F_ACK_TLVS | NLM_F_CAPPED] {
        for end in 0..bytes.len() {
            let message = Message { message_type: NLMSG_ERROR, flags, sequence: 0, payload: &bytes[..end] };
            let _ = parse_error(&message);
        }
    }
}
