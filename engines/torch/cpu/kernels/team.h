// A team of threads that meets often: within one parallel region, since entering one can cost more than the work.
#pragma once

#include <atomic>
#include <sched.h>

namespace penstock {

class Team {
  public:
    explicit Team(int threads) : threads(threads), left(threads) {}

    // Waits for all. Whoever waits long lets others have its core: a partner's, or the gateway's.
    void wait() {
        const int turn = turns.load(std::memory_order_relaxed);
        if (left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
            left.store(threads, std::memory_order_relaxed);
            turns.store(turn + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; turns.load(std::memory_order_acquire) == turn; ++spins)
            if (spins < SPINS) pause();
            else sched_yield();
    }

    const int threads;

  private:
    static constexpr int SPINS = 2000;

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }

    std::atomic<int> left, turns{0};
};

}  // namespace penstock
