//! Who does which part of a step.

/// Does it with an even share of the panels for each of the threads' own things, each on a thread of its own.
pub(super) fn in_shares<P: Send, S: Send>(
    mut panels: &mut [P],
    of_threads: &mut [S],
    work: impl Fn(&mut [P], &mut S) + Sync,
) {
    let mut shares = Vec::with_capacity(of_threads.len());
    let mut n_left = of_threads.len();
    for scratch in of_threads {
        let own = panels.split_off_mut(..panels.len() / n_left).unwrap_or_default();
        n_left -= 1;
        shares.push((own, scratch));
    }
    each(&mut shares, |(panels, scratch)| work(panels, scratch));
}

/// Does it with each, each on a thread of its own.
pub(super) fn each<T: Send>(items: &mut [T], work: impl Fn(&mut T) + Sync) {
    let Some((first, others)) = items.split_first_mut() else { return };
    std::thread::scope(|scope| {
        for item in others {
            scope.spawn(|| work(item));
        }
        work(first);
    });
}
