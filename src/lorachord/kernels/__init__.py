"""Speed alone: the operations of the equation, each as one autograd function."""
