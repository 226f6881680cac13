"""paramarket: are neural-network weights worth trading? Models as a stack of parameters, and what they are worth.

Import the rooms, not the names, so that a reader sees where a function lives:

    from paramarket import data, stack, train
    digits = data.load("digits")
    net = stack.mlp(64, [32], 10)
    fit = train.fit(net, stack.init(net, copies=2, seed=0), digits.train, epochs=5)
"""

__version__ = "0.1.0"
