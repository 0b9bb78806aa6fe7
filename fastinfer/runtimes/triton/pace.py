"""How many batches may be in flight: as many as make the server fastest, which is measured."""

WINDOW = 24  # batches of one measurement, while others wait all the time
ROUNDS = 3  # measurements of each of the two
GAIN = 1.03  # by which the larger number must be faster to be worth the smaller batches
KEPT_S = 30.0  # seconds that a choice lasts


class Pace:
    """Chooses between one batch for each instance of the model and one more, which travels while those compute.

    With more in flight, each batch is smaller: whether that is faster depends on what a batch costs beside its rows.
    Both are tried in turn under load, and again after a while. Without load the larger number is allowed.

    Args:
        fewer, more: the two numbers.

    Attributes:
        limit: batches that may be in flight now.
    """

    def __init__(self, fewer: int, more: int) -> None:
        self.fewer, self.more = fewer, more
        self.limit = self.more
        self.rates: dict[int, list[float]] = {}
        self.chosen_until = 0.0
        self.begin()

    def begin(self) -> None:
        """Measure from the next batch on; the first ones still belong to what was before."""
        self.count = -self.more
        self.rows = 0
        self.since = 0.0

    def note(self, rows: int, waiting: bool, now: float) -> int:
        """A batch came back.

        Args:
            rows: of it.
            waiting: whether others waited for its place.
            now: of a monotonic clock, seconds.

        Returns:
            batches that may be in flight from now on.
        """
        if now < self.chosen_until:
            return self.limit
        if not waiting:
            self.begin()
            return self.limit
        self.count += 1
        if self.count == 0:
            self.since, self.rows = now, 0
        elif self.count > 0:
            self.rows += rows
        if self.count >= WINDOW and now > self.since:
            self.rates.setdefault(self.limit, []).append(self.rows / (now - self.since))
            self.limit = self.fewer if self.limit == self.more else self.more
            self.begin()
            if len(self.rates) == 2 and min(map(len, self.rates.values())) >= ROUNDS:
                fewer, more = (sorted(self.rates[each])[ROUNDS // 2] for each in (self.fewer, self.more))
                self.limit = self.more if more > GAIN * fewer else self.fewer
                self.rates.clear()
                self.chosen_until = now + KEPT_S
        return self.limit
