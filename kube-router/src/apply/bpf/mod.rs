//! The BPF programs in the kernel: load, attach, read, detach.
//!
//! In: names of devices. Out: counters. The programs themselves are the crate kube-router-ebpf; [`object`] is how they
//! get into this binary, [`attach`] how they get onto a device. What the counters mean is said by kube-router-common.
//!
//! Everything belongs to the network namespace of the thread that calls. Dropping a [`Dataplane`] detaches what it
//! attached and unloads the programs. If the agent dies without that, programs attached by tcx go with it; programs
//! attached by clsact stay, go on counting for nobody, and are replaced by the next attachment to the device.

mod attach;
mod object;

use std::collections::BTreeMap;

use aya::{
    Ebpf, EbpfError,
    maps::{MapError, PerCpuArray},
    programs::{ProgramError, SchedClassifier, tc::SchedClassifierLinkId},
};
use kube_router_common::{
    Traffic, TrafficClass,
    names::{COUNT_PROGRAM, TRAFFIC_MAP},
};

pub use self::{
    attach::{AttachMode, CLSACT_HANDLE, CLSACT_PRIORITY, Direction},
    object::is_embedded,
};

#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// Nothing to load; the rest of the agent works.
    #[error("built without the dataplane object: run cargo xtask build-ebpf, then build again")]
    NoObject,
    /// The kernel refused the object (too old, no privilege, verifier).
    #[error("loading the dataplane object: {0}")]
    Load(#[from] EbpfError),
    #[error("loading program {program}: {source}")]
    LoadProgram { program: &'static str, source: ProgramError },
    /// The object is of another version than this agent.
    #[error("the dataplane object has no {0}")]
    Contents(&'static str),
    /// Attaching or detaching; the device may be gone.
    #[error("{device} {direction} by {mode}: {source}")]
    Attach { device: Box<str>, direction: Direction, mode: AttachMode, source: ProgramError },
    #[error("reading map {map}: {source}")]
    Read { map: &'static str, source: MapError },
}

/// The programs, loaded.
pub struct Dataplane {
    ebpf: Ebpf,
    attached: BTreeMap<(Box<str>, Direction), (AttachMode, SchedClassifierLinkId)>,
}

impl Dataplane {
    /// Loads the embedded object. Needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; attaches nothing.
    pub fn load() -> Result<Self, BpfError> {
        let object = object::embedded().ok_or(BpfError::NoObject)?;
        let ebpf = Ebpf::load(object)?;
        let mut dataplane = Dataplane { ebpf, attached: BTreeMap::new() };
        dataplane.count_program()?.load().map_err(|source| BpfError::LoadProgram { program: COUNT_PROGRAM, source })?;
        Ok(dataplane)
    }

    fn count_program(&mut self) -> Result<&mut SchedClassifier, BpfError> {
        let program = self.ebpf.program_mut(COUNT_PROGRAM).ok_or(BpfError::Contents(COUNT_PROGRAM))?;
        program.try_into().map_err(|_| BpfError::Contents(COUNT_PROGRAM))
    }

    /// Counts packets of `device` in this direction. Twice is once.
    pub fn attach(&mut self, device: &str, direction: Direction, mode: AttachMode) -> Result<(), BpfError> {
        let key = (Box::from(device), direction);
        if self.attached.contains_key(&key) {
            return Ok(());
        }
        let failed = |source| BpfError::Attach { device: device.into(), direction, mode, source };
        let link = attach::attach(self.count_program()?, device, direction, mode).map_err(failed)?;
        tracing::info!(device, %direction, %mode, program = COUNT_PROGRAM, "program attached");
        self.attached.insert(key, (mode, link));
        Ok(())
    }

    /// Takes the program off again; nothing if it is not there.
    pub fn detach(&mut self, device: &str, direction: Direction) -> Result<(), BpfError> {
        let Some((mode, link)) = self.attached.remove(&(Box::from(device), direction)) else { return Ok(()) };
        let failed = |source| BpfError::Attach { device: device.into(), direction, mode, source };
        self.count_program()?.detach(link).map_err(failed)?;
        tracing::info!(device, %direction, %mode, program = COUNT_PROGRAM, "program detached");
        Ok(())
    }

    /// What passed the attached programs since they were loaded, added up over processors and devices.
    pub fn traffic(&self) -> Result<BTreeMap<TrafficClass, Traffic>, BpfError> {
        let read = |source| BpfError::Read { map: TRAFFIC_MAP, source };
        let map = self.ebpf.map(TRAFFIC_MAP).ok_or(BpfError::Contents(TRAFFIC_MAP))?;
        let map: PerCpuArray<_, Traffic> = PerCpuArray::try_from(map).map_err(read)?;
        let mut traffic = BTreeMap::new();
        for class in TrafficClass::ALL {
            let per_processor = map.get(&class.index(), 0).map_err(read)?;
            traffic.insert(class, per_processor.iter().fold(Traffic::default(), |sum, one| sum.plus(*one)));
        }
        Ok(traffic)
    }
}

#[cfg(all(test, not(kube_router_bpf_object)))]
mod tests {
    use super::*;

    #[test]
    fn without_an_object_the_error_says_what_to_do() {
        assert!(!is_embedded());
        let error = Dataplane::load().map(|_| ()).expect_err("nothing to load");
        assert!(matches!(error, BpfError::NoObject));
        assert!(error.to_string().contains("cargo xtask build-ebpf"));
    }
}
