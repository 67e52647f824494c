//! aya's plain-data marker for shared types: the one place of this crate with unsafe code.

/// Marks types as plain data for aya. Only what zerocopy accepts as bytes in and bytes out, and what can be copied, is
/// let in; padding, references and invalid bit patterns are refused when compiled.
macro_rules! plain {
    ($($kind:ty),+ $(,)?) => {
        $(
            const _: () = {
                const fn bytes<T: zerocopy::FromBytes + zerocopy::IntoBytes + Copy + 'static>() {}
                bytes::<$kind>()
            };
            // SAFETY: `Pod` asks that the type may be read from and written as any bytes of its size. That is what
            // `FromBytes` and `IntoBytes`, required above, promise.
            unsafe impl aya::Pod for $kind {}
        )+
    };
}

use crate::{config, event, flow, policy};

plain!(crate::Traffic);
plain!(policy::Address, policy::Endpoint, policy::PodGroups, policy::Peer, policy::PolicyKey, policy::PolicyRow);
plain!(policy::CidrKey, flow::FlowKey, flow::Flow, event::Event, event::EventHead, event::Bucket);
plain!(config::Config, config::Iface, config::FragKey, config::FragPorts, config::Origin, config::RuleCount);
plain!(config::DropKey);
