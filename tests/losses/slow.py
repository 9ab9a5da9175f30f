"""The losses of ACTION and ACTION++ as their definitions read, one vector after another."""

import math


def cosine(a, b) -> float:
    return (a @ b / (a.norm() * b.norm()).clamp(min=1e-12)).item()


def slow_similarity_distillation(student, teacher, entries, tau_s=0.1, tau_t=0.05) -> list[float]:
    losses, center = [], sum(entries) / len(entries)
    student, teacher, entries = student - center, teacher - center, entries - center
    for s, t in zip(student, teacher, strict=True):
        p_s = [math.exp(cosine(s, e) / tau_s) for e in entries]
        p_t = [math.exp(cosine(t, e) / tau_t) for e in entries]
        p_s, p_t = ([p / sum(ps) for p in ps] for ps in (p_s, p_t))
        losses.append(sum(t * math.log(t / s) for t, s in zip(p_t, p_s, strict=True) if t > 0))
    return losses


def slow_regional_contrast(queries, hard, positives, negatives, present, temperature) -> float:
    total = 0.0
    for c in range(len(queries)):
        if not hard[c]:
            continue
        losses = []
        for q in queries[c]:
            positive = math.exp(cosine(q, positives[c]) / temperature)
            others = sum(math.exp(cosine(q, n) / temperature) for n in negatives[c])
            losses.append(-math.log(positive / (positive + others)))
        total += sum(losses) / len(losses)
    return total / max(1, int(present.sum()))


def slow_adaptive_contrast(queries, present, entries, known, centers, temperature, center_weight) -> float:
    total = 0.0
    everything = [e for c in range(len(entries)) for e in entries[c][known[c]]]
    for c in range(len(queries)):
        if not present[c]:
            continue
        losses = []
        for q in queries[c]:

            def exp(v, q=q):
                return math.exp(cosine(q, v) / temperature)

            all_of_them = sum(map(exp, everything)) + sum(map(exp, centers))
            own = [-math.log(exp(p) / all_of_them) for p in entries[c][known[c]]]
            center = -math.log(exp(centers[c]) / all_of_them)
            losses.append((sum(own) / len(own) if own else 0.0) + center_weight * center)
        total += sum(losses) / len(losses)
    return total / max(1, int(present.sum()))
