//! Which events are looked at.

use kvpsi_common::{Event, Kind};
use std::time::Duration;

/// What an event must have; an empty filter takes all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only these kinds; all if empty.
    pub kinds: Vec<Kind>,
    /// Only this process.
    pub pid: Option<u32>,
    /// Only tasks with this command name.
    pub comm: Option<String>,
    /// Only tasks of the cgroup with this v2 id.
    pub cgroup: Option<u64>,
    /// Only what lasted so long: no begins, and no marks.
    pub least: Option<Duration>,
}

impl Filter {
    /// Whether an event is wanted.
    #[must_use]
    pub fn takes(&self, e: &Event) -> bool {
        let wanted = |kind: Option<Kind>| kind.is_some_and(|k| self.kinds.contains(&k));
        (self.kinds.is_empty() || wanted(e.kind()) || wanted(e.settled()))
            && self.pid.is_none_or(|p| p == e.tgid)
            && self.comm.as_deref().is_none_or(|c| c == e.comm_str())
            && self.cgroup.is_none_or(|c| c == e.cgroup_id)
            && self
                .least
                .is_none_or(|d| Duration::from_nanos(e.stall_ns) >= d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable;

    #[test]
    fn an_event_must_have_all_that_is_asked() {
        let mut e = Event::zeroed();
        e.kind = Kind::MemcgReclaim as u16;
        e.tgid = 77;
        e.cgroup_id = 5;
        e.stall_ns = 2_000_000;
        e.comm[..3].copy_from_slice(b"hog");
        let all = Filter {
            kinds: vec![Kind::MemcgReclaim],
            pid: Some(77),
            comm: Some("hog".into()),
            cgroup: Some(5),
            least: Some(Duration::from_millis(2)),
        };
        assert!(all.takes(&e) && Filter::default().takes(&e));
        let others = [
            Filter {
                kinds: vec![Kind::DirectReclaim],
                ..all.clone()
            },
            Filter {
                pid: Some(78),
                ..all.clone()
            },
            Filter {
                comm: Some("ho".into()),
                ..all.clone()
            },
            Filter {
                cgroup: Some(6),
                ..all.clone()
            },
            Filter {
                least: Some(Duration::from_millis(3)),
                ..all
            },
        ];
        for other in others {
            assert!(!other.takes(&e), "{other:?}");
        }
    }
}
