from tests.cuda.counted import *


def test_it(tmp_path):
    import time

    t = time.time()
    c = count(tmp_path, *LLAMA_60M, "--no-rope-fusion", "--norm-scheme", "lns")
    print(time.time() - t)
    print(table({"lns": c}))
    for p in PHASES[:2]:
        print(p)
        [print("   ", v, k[:160]) for k, v in c.of_a_layer(p).most_common()]
    for k, v in c.whole.waits.most_common():
        print(v, k)
